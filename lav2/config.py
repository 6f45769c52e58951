"""A composed config → its parts, and everything that is wrong with it, found before any weight is read."""

from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lav2.adapter import AdapterConfig
from lav2.errors import UserError
from lav2.llama import LlamaConfig
from lav2.llama.loading import read_config
from lav2.tasks import TASKS
from lav2.training.data import JointData
from lav2.training.optimizers import TaskOptim
from lav2.vision import feature_width

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def has_weights(cfg: DictConfig) -> bool:
    """Whether the config names a base model to train on; without one there is only its parameter table to see."""
    return cfg.llama.path is not None


def llama_shape(cfg: DictConfig) -> LlamaConfig:
    """The base model's shape: read from its folder, or as the config states it.

    Raises:
        UserError: the folder holds no LLaMA, or one of another size than the config says.
    """
    stated = LlamaConfig(**cfg.llama.shape) if cfg.llama.shape else None
    if not has_weights(cfg):
        if stated is None:
            raise UserError("llama.path is not set: name the folder of the base model, or choose a size (llama=7b)")
        return stated
    found = read_config(Path(cfg.llama.path))
    for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
        if stated and getattr(found, name) != getattr(stated, name):
            raise UserError(
                f"llama.path={cfg.llama.path} holds a LLaMA with {name} {getattr(found, name)}, the config chose one "
                f"with {getattr(stated, name)}: choose another llama= or another folder"
            )
    return found


def tokenizer_path(cfg: DictConfig) -> Path:
    return Path(cfg.llama.tokenizer or Path(cfg.llama.path) / "tokenizer.model")


def adapter_config(cfg: DictConfig) -> AdapterConfig:
    return AdapterConfig.from_dict(OmegaConf.to_container(cfg.adapter, resolve=True))


def build_data(cfg: DictConfig) -> JointData:
    """The data module, with nothing read yet."""
    return construct("data", cfg.data, seed=cfg.seed, tasks=list(cfg.tasks))


def build_optim(cfg: DictConfig) -> dict[str, TaskOptim]:
    return {task: construct(f"optim.{task}", cfg.optim[task]) for task in cfg.tasks}


def build_trainer(cfg: DictConfig, **more: Any) -> Trainer:
    """Lightning's Trainer from the groups ``trainer`` and ``strategy``."""
    return construct("trainer", cfg.trainer, **construct("strategy", cfg.strategy), **more)


def construct(name: str, section: DictConfig, **more: Any) -> Any:
    """Hydra's ``instantiate`` with a user's mistake as one line that names the section."""
    try:
        return instantiate(section, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError | ValueError | MisconfigurationException | ImportError | AttributeError):
            raise UserError(f"{name}: {' '.join(str(cause).split())}") from None
        raise


def problems(cfg: DictConfig) -> list[str]:
    """Everything that is wrong with ``cfg``, one line each; empty when it can be run."""
    found: list[str] = []

    def attempt(check, *arguments):
        try:
            return check(*arguments)
        except UserError as error:
            found.extend(str(error).splitlines())

    shape = attempt(llama_shape, cfg)
    adapter = attempt(adapter_config, cfg)
    if shape and adapter:
        found.extend(adapter.problems(shape))
    if cfg.llama.dtype not in DTYPES:
        found.append(f"llama.dtype is {cfg.llama.dtype!r}; choose one of {', '.join(DTYPES)}")
    if unknown := sorted(set(cfg.tasks) - set(TASKS)) or not cfg.tasks:
        found.append(
            f"tasks is {list(cfg.tasks)}; choose from {', '.join(TASKS)}"
            + (f" ({unknown[0]!r} is none)" if cfg.tasks else "")
        )
        return found
    if adapter and "caption" in cfg.tasks and not adapter.visual_layers:
        found.append(
            "tasks has caption, but adapter.visual_layers is 0: nothing could see the images; set tasks=[instruction]"
        )
    attempt(feature_width, cfg.vision.name)
    attempt(check_optim, cfg)
    attempt(check_trainer, cfg)
    if has_weights(cfg):
        if not tokenizer_path(cfg).is_file():
            found.append(
                f"no tokenizer at {tokenizer_path(cfg)}: set llama.tokenizer to a SentencePiece tokenizer.model"
            )
        if "caption" in cfg.tasks and not (cfg.vision.weights and Path(cfg.vision.weights).is_file()):
            found.append(f"vision.weights is {cfg.vision.weights}: name the file with the weights of {cfg.vision.name}")
        data = attempt(build_data, cfg)
        found.extend(f"data: {line}" for line in (data.missing_files() if data else []))
    return found


def check_optim(cfg: DictConfig) -> None:
    """Build each task's optimizer on a stand-in parameter, so that a wrong value shows now."""
    for task, optim in build_optim(cfg).items():
        try:
            optim.build(task, {"adapter.caption.projector.queries": torch.nn.Parameter(torch.zeros(1, 1))})
        except (TypeError, ValueError) as error:
            raise UserError(f"optim.{task}: {error}") from None
        if not 0 <= optim.warmup < 1 or not 0 <= optim.final <= 1:
            raise UserError(f"optim.{task}: warmup {optim.warmup} and final {optim.final} are fractions from 0 to 1")


def check_trainer(cfg: DictConfig) -> None:
    build_trainer(cfg, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
