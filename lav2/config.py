"""A composed config → its parts, and everything that is wrong with it, found before any weight is read."""

import inspect
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lav2.adapter import AdapterConfig
from lav2.adapter.sight import sight_problems
from lav2.adapter.start import start_problems as adapter_start_problems
from lav2.cli import in_sweep
from lav2.errors import UserError
from lav2.llama import LlamaConfig, load_tokenizer, open_checkpoint
from lav2.llama.loading import read_config
from lav2.llama.quantization import QUANTIZATIONS, check_torchao
from lav2.llama.tokenizer import tokenizer_file
from lav2.tasks import TASKS
from lav2.training.data import JointData
from lav2.training.optimizers import TaskOptim
from lav2.training.strategies import device_problems, strategy_problems
from lav2.vision import VisionEncoder
from lav2.vision.encoder import vision_problems as encoder_problems

FLOAT16 = ("16", "16-mixed", "16-true", "transformer-engine-float16")  # precisions of Lightning's
RESOLVING = "UserError raised while resolving interpolation: "  # OmegaConf's words around ours
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def has_weights(cfg: DictConfig) -> bool:
    """Whether the config names a base model to train on; without one there is only its parameter table to see."""
    return OmegaConf.is_interpolation(cfg.llama, "path") or cfg.llama.path is not None


def llama_shape(cfg: DictConfig) -> LlamaConfig:
    """The base model's shape: read from its folder or file, or as the config states it.

    Raises:
        UserError: there is no LLaMA, or one of another size than the config says; or what it says is no shape.
    """
    try:
        stated = LlamaConfig(**cfg.llama.shape) if cfg.llama.shape else None
    except TypeError as error:
        raise UserError(f"llama.shape: {str(error).removeprefix('LlamaConfig.__init__() ')}") from None
    if not has_weights(cfg):
        if stated is None:
            raise UserError("llama.path is not set: name the folder of the base model, or choose a size (llama=7b)")
        return stated
    if not isinstance(cfg.llama.path, str):
        raise UserError(f"llama.path is {cfg.llama.path!r}; name the folder of the base model")
    found = read_config(cfg.llama.path)
    for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
        if stated and getattr(found, name) != getattr(stated, name):
            raise UserError(
                f"llama.path={cfg.llama.path} holds a LLaMA with {name} {getattr(found, name)}, the config chose one "
                f"with {getattr(stated, name)}: choose another llama= or another folder"
            )
    return found


def tokenizer_path(cfg: DictConfig) -> Path:
    """The tokenizer's file: ``llama.tokenizer``, or else what the base model's folder or file holds."""
    return tokenizer_file(cfg.llama.tokenizer or cfg.llama.path)


def adapter_config(cfg: DictConfig) -> AdapterConfig:
    return AdapterConfig.from_dict(OmegaConf.to_container(cfg.adapter, resolve=True))


def build_data(cfg: DictConfig) -> JointData:
    """The data module, with nothing read yet."""
    return construct("data", cfg.data, seed=cfg.seed, tasks=list(cfg.tasks))


def build_optim(cfg: DictConfig) -> dict[str, TaskOptim]:
    """How each group is optimized; which groups the tasks train, the model knows."""
    return {group: construct(f"optim.{group}", cfg.optim[group]) for group in TASKS}


def build_trainer(cfg: DictConfig, **more: Any) -> Trainer:
    """Lightning's Trainer from the groups ``trainer`` and ``strategy``.

    Lightning counts ``val_check_interval`` in batches, from the start of each epoch unless told otherwise; here it is
    steps, of the whole run.
    """
    interval = cfg.trainer.get("val_check_interval")
    if type(interval) is int:
        batches = interval * cfg.trainer.get("accumulate_grad_batches", 1)
        more |= {"val_check_interval": batches, "check_val_every_n_epoch": None}
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


def problems(cfg: DictConfig, resumes: bool = False) -> list[str]:
    """Everything that is wrong with ``cfg``, one line each; empty when it can be run.

    For ``data_report`` and ``plan`` only what these need is looked at; a run that ``resumes`` has begun, and does not
    need the adapter it began with.
    """
    found = list(task_problems(cfg))
    if found:  # look at the rest as if all tasks were meant
        cfg = cfg.copy()
        OmegaConf.set_struct(cfg, False)
        cfg.tasks = list(TASKS)
    for section, check in (REPORT_CHECKS if cfg.data_report else PLAN_CHECKS if cfg.plan else CHECKS).items():
        if section == "adapter_from" and resumes:
            continue
        try:
            for line in check(cfg):
                found.append(line)
        except UserError as error:
            found.extend(str(error).splitlines())
        except OmegaConfBaseException as error:  # a key is missing; the message names it
            reason = str(error).splitlines()[0].removeprefix(RESOLVING)
            found.append(f"{error.full_key or section}: {reason}")
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # a value of a kind no check foresaw
            found.append(f"{section}: {' '.join(str(error).split())}")
    return list(dict.fromkeys(found))


def task_problems(cfg: DictConfig) -> Iterator[str]:
    tasks = cfg.get("tasks")
    choices = f"choose from {', '.join(TASKS)}"
    if not isinstance(tasks, ListConfig) or not tasks:
        yield f"tasks is {tasks!r}; {choices}"
    elif unknown := [task for task in tasks if task not in TASKS]:
        yield f"tasks is {list(tasks)}; {choices} ({unknown[0]!r} is none)"
    elif len(set(tasks)) < len(tasks):
        yield f"tasks is {list(tasks)}; name each task once"


def run_problems(cfg: DictConfig) -> Iterator[str]:
    """What concerns the run as a whole."""
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        yield f"seed is {cfg.seed!r}; it must be a whole number from 0 to {2**32 - 1}"
    if cfg.on_nan not in ("stop", "skip"):
        yield f"on_nan is {cfg.on_nan!r}; choose stop or skip"
    if not isinstance(cfg.compile, bool):
        yield f"compile is {cfg.compile!r}; it must be true or false"
    elif cfg.compile and not (shutil.which(os.environ.get("CXX", "g++")) or torch.cuda.is_available()):
        yield "compile is true, and there is no C++ compiler: install g++, name one in CXX, or set compile=false"
    for name in ("activation_checkpointing", "one_pass"):
        if type(cfg[name]) is not bool:
            yield f"{name} is {cfg[name]!r}; it must be true or false"
    for name in ("checkpoint_every", "progress_every"):
        if not is_count(value := cfg.callbacks[name]):
            yield f"callbacks.{name} is {value!r}; it must be a whole number of steps, 1 or more"


def start_problems(cfg: DictConfig) -> Iterator[str]:
    """Whether training can start from the adapter it is to start from; its tensors are looked at when it is read."""
    if cfg.adapter_from is not None:
        adapter = adapter_config(cfg)
        sees = adapter.sees and build_data(cfg).has_images
        vision = OmegaConf.to_container(cfg.vision, resolve=True) if sees else None
        yield from adapter_start_problems(cfg.adapter_from, adapter, llama_shape(cfg), vision)


def llama_problems(cfg: DictConfig) -> Iterator[str]:
    if cfg.llama.dtype not in tuple(DTYPES):
        yield f"llama.dtype is {cfg.llama.dtype!r}; choose one of {', '.join(DTYPES)}"
    if cfg.llama.quantize in tuple(QUANTIZATIONS):
        check_torchao(cfg.llama.quantize)
    elif cfg.llama.quantize is not None:
        yield f"llama.quantize is {cfg.llama.quantize!r}; choose one of {', '.join(QUANTIZATIONS)}, or null"
    shape = llama_shape(cfg)
    if has_weights(cfg):
        try:
            open_checkpoint(cfg.llama.path)
        except UserError as error:
            yield str(error)
        load_tokenizer(tokenizer_path(cfg), shape.vocab_size)


def tokenizer_problems(cfg: DictConfig) -> Iterator[str]:
    if cfg.llama.tokenizer is None and cfg.llama.path is None:
        yield "no tokenizer: set llama.tokenizer, or llama.path to the base model"
    else:
        load_tokenizer(tokenizer_path(cfg))


def adapter_problems(cfg: DictConfig) -> Iterator[str]:
    adapter = adapter_config(cfg)
    if "caption" in cfg.tasks and not adapter.sees:
        yield (
            "tasks has caption, but adapter.visual_layers is 0: nothing could see the images; set "
            "tasks=[instruction], or choose an adapter that sees"
        )
    yield from adapter.wrong_values()
    yield from adapter.problems(llama_shape(cfg))
    if "caption" not in cfg.tasks and not adapter.sees and build_data(cfg).has_images:
        yield "data.instructions has images, but adapter.visual_layers is 0: nothing could see them; leave them out"


def vision_problems(cfg: DictConfig) -> Iterator[str]:
    settings = OmegaConf.to_container(cfg.vision, resolve=True)
    known = list(inspect.signature(VisionEncoder).parameters)
    if unknown := sorted(settings.keys() - set(known)):
        yield f"vision has no setting {unknown[0]!r}; it has {', '.join(known)}"
    wrong = list(encoder_problems(settings))
    yield from wrong or sight_problems(adapter_config(cfg), settings)
    found = isinstance(cfg.vision.weights, str) and Path(cfg.vision.weights).is_file()
    if has_weights(cfg) and not found and build_data(cfg).has_images:
        yield f"vision.weights is {cfg.vision.weights}: name the file with the weights of {cfg.vision.name}"


def optim_problems(cfg: DictConfig) -> Iterator[str]:
    """Build each task's optimizer on a stand-in parameter, so that a wrong value shows now."""
    for task in cfg.tasks:
        try:
            optim = construct(f"optim.{task}", cfg.optim[task])
            if not isinstance(optim, TaskOptim):
                raise UserError(f"optim.{task} is {optim!r}; it must be a TaskOptim, as in conf/optim/v2.yaml")
            wrong = optim.problems()
            yield from (f"optim.{task}.{line}" for line in wrong)
            if not wrong:
                optim.build(task, {"adapter.caption.projector.queries": torch.nn.Parameter(torch.zeros(1, 1))})
        except UserError as error:  # the other task is looked at all the same
            yield str(error)
        except (TypeError, ValueError) as error:  # in torch's words, which seldom name the setting
            given = OmegaConf.select(cfg, f"optim.{task}.optimizer") or {}
            settings = ", ".join(f"{key}={value}" for key, value in given.items() if key[0] != "_")
            yield f"optim.{task}: {' '.join(str(error).split())} (optim.{task}.optimizer has {settings})"


def trainer_problems(cfg: DictConfig) -> Iterator[str]:
    if (norm := cfg.trainer.get("gradient_clip_val")) is not None:
        yield f"trainer.gradient_clip_val is {norm}, one norm for both tasks; set optim.<task>.clip instead"
    if cfg.trainer.get("max_steps", -1) == -1 and cfg.trainer.get("max_epochs") == -1:
        yield "trainer.max_steps and trainer.max_epochs are both -1, a schedule without end; set one"
    yield from engine_problems(cfg)
    if str(cfg.trainer.get("precision")) in FLOAT16:
        yield (
            f"trainer.precision={cfg.trainer.precision} trains in float16, whose gradients overflow until a scale is "
            "found, which on_nan takes for NaNs; choose 32-true (llama.dtype sets the frozen weights') or bf16-mixed"
        )
        return  # Lightning would say of it, in other words, what it makes of it here
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = build_trainer(cfg, **dict.fromkeys(quiet, False))
    yield from device_problems(cfg.strategy, trainer)
    yield from sweep_problems(trainer)


def engine_problems(cfg: DictConfig) -> Iterator[str]:
    """What the strategy cannot do of what the config asks, whatever the machine has."""
    trained = TASKS if cfg.adapter.get("ownership") == "shared" else cfg.tasks
    clips = {task: cfg.optim[task].get("clip") for task in trained if cfg.optim.get(task) is not None}
    yield from strategy_problems(cfg.strategy, clips, cfg.llama.quantize, cfg.on_nan)


def sweep_problems(trainer: Trainer) -> Iterator[str]:
    """Several processes in one job of a sweep: Lightning would start each by the sweep's own command line."""
    if not in_sweep() or trainer.num_devices * trainer.num_nodes == 1:
        return
    hydra = HydraConfig.get()
    name, tasks = hydra.runtime.choices["hydra/launcher"], hydra.launcher.get("tasks_per_node")
    if not hydra.launcher._target_.endswith("SlurmLauncher"):
        yield (
            f"trainer.devices: a job of a sweep has {trainer.num_devices * trainer.num_nodes} processes, each of which "
            f"would start the sweep again under the launcher {name}; set hydra/launcher=slurm_a100, give each job one "
            "device, or train one after the other without -m"
        )
    elif tasks != trainer.num_devices:
        yield f"hydra.launcher.tasks_per_node is {tasks}; trainer.devices asks for {trainer.num_devices} processes"


def data_problems(cfg: DictConfig) -> Iterator[str]:
    for name, least in (("training", 1), ("held_out", 1), ("instruction_count", 1), ("image_questions", 0)):
        if name in cfg.data and not is_count(cfg.data[name], least):  # of the embedded world
            yield f"data.{name} is {cfg.data[name]!r}; it must be a whole number, {least} or more"
    data = build_data(cfg)
    if has_weights(cfg) or cfg.data_report:
        yield from (f"data: {line}" for line in data.missing_files())
    if cfg.llama.path is None and cfg.llama.shape is None:
        return
    longest = llama_shape(cfg).max_length
    for task in cfg.tasks:
        if data.max_length[task] > longest:
            yield f"data.max_length.{task} is {data.max_length[task]}; this LLaMA reads at most {longest} tokens"


CHECKS = {
    "seed and callbacks": run_problems,
    "llama": llama_problems,
    "adapter": adapter_problems,
    "adapter_from": start_problems,
    "vision": vision_problems,
    "optim": optim_problems,
    "trainer": trainer_problems,
    "data": data_problems,
}
PLAN_CHECKS = CHECKS | {"trainer": engine_problems}  # the GPUs need not be here
REPORT_CHECKS = {"llama": tokenizer_problems, "data": data_problems}


def is_count(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is a whole number, ``least`` or more."""
    return type(value) is int and value >= least
