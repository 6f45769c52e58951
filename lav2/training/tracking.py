"""What wandb is told besides curves: the settings, every gate, captions of the same pictures over time, the adapter.

The curves themselves (both losses, learning rates, gradient norms, tokens a second, memory) come through Lightning's
logger, as those of ``metrics.csv`` do.
"""

import itertools
import netrc
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from PIL import Image
from torch.distributed.fsdp import FSDPModule

from lav2.cli import in_sweep
from lav2.data.pictures import read_picture
from lav2.disk import write_whole
from lav2.errors import UserError
from lav2.llama.generation import generate
from lav2.llama.text import AnswerText
from lav2.training.data import JointData
from lav2.training.sharding import Sharding, whole

MODES = ("online", "offline", "disabled", "shared", "run", "dryrun")  # wandb's; the last two mean the first two
PICTURES = 8  # held-out ones that are captioned at every validation
LONGEST_CAPTION = 48  # tokens
THUMBNAIL = 224  # pixels


def wandb_logger(
    folder: str | Path, project: str, mode: str | None = None, group: str | None = None, tags: Sequence[str] = ()
) -> WandbLogger:
    """wandb for the run in ``folder``. A job of a sweep is grouped with the others and tagged with what it varies; a
    resumed run goes on in its wandb run.

    Args:
        mode: ``online``, ``offline`` or ``disabled``, or another word of wandb's for it; ``None`` is what
            ``WANDB_MODE`` says, or else online where wandb finds a key and offline where it finds none.
        group: default: the sweep's folder.

    Raises:
        UserError: there is no such mode.
    """
    said = os.environ.get("WANDB_MODE") or None  # wandb looks at it even if told the mode
    for name, value, none in (("logger.wandb.mode", mode, "null"), ("WANDB_MODE", said, "unset it")):
        if value not in (None, *MODES):
            raise UserError(f"{name} is {value!r}; choose one of {', '.join(MODES)}, or {none}")
    mode = mode or said or ("online" if has_key() else "offline")
    folder, changes = Path(folder), swept()
    if in_sweep():
        group = group or Path(HydraConfig.get().sweep.dir).name
    return WandbLogger(
        name=" ".join(changes) or folder.resolve().name,
        save_dir=folder,
        project=project,
        mode=mode,
        group=group,
        tags=[*tags, *(change[:64] for change in changes)],  # wandb takes no longer ones
        id=run_id(folder / "wandb" / "id"),
        log_model=False,
    )


def has_key() -> bool:
    """Whether wandb would find a key without asking: in WANDB_API_KEY or, after ``wandb login``, in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def swept() -> list[str]:
    """What sets this job of a sweep apart, as ``key=value``: what the command line does not give one value."""
    if not in_sweep():
        return []
    hydra = HydraConfig.get()
    given = OmegaConf.load(Path(hydra.sweep.dir) / "multirun.yaml").hydra.overrides.task
    parsed = OverridesParser.create().parse_overrides(list(given))
    fixed = {override.key_or_group for override in parsed if not override.is_sweep_override()}
    return [change for change in hydra.overrides.task if change.lstrip("+").partition("=")[0] not in fixed]


@rank_zero_only
def run_id(path: Path) -> str | None:
    """The wandb run's id: that in ``path``, or a new one that is kept there; ``None`` on processes that log nothing."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_hex(4))
    return path.read_text()


class Tracking(Callback):
    """Tells wandb, where the run logs to it, what Lightning's logger does not; on the first process alone.

    Args:
        settings: the run's config.
        adapter: the adapter folder, which becomes an artifact when training ends.
    """

    def __init__(self, settings: dict[str, Any], adapter: str | Path):
        self.settings, self.adapter = settings, adapter
        self.captions: dict[int, list[str]] = {}  # by step, those of before a resumption too

    def state_dict(self) -> dict[str, Any]:
        return {"captions": self.captions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.captions = state_dict["captions"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := wandb_run(trainer):
            run.config.update(self.settings, allow_val_change=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Every gate: the mean of ``|tanh g|`` over the heads of each layer."""
        if trainer.global_step % trainer.log_every_n_steps:
            return
        adapter = pl_module.model.adapter
        gates = {
            f"gates/adaptation/{layer}": tuning.prompts.gate
            for layer, tuning in enumerate(adapter["instruction"].layers)
            if tuning.prompts is not None
        }
        if "caption" in adapter:
            gates |= {f"gates/visual/{layer}": gate for layer, gate in enumerate(adapter["caption"].gates)}
        # on all processes, which share a gate under FSDP2
        opened = {name: whole(gate(train=False)).abs().mean().item() for name, gate in gates.items()}
        if run := wandb_run(trainer):
            run.log(opened | {"trainer/global_step": trainer.global_step - 1})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A row a picture and a column a validation: how the captions of the same pictures change."""
        data, sharded = trainer.datamodule, isinstance(trainer.strategy, Sharding)
        if not logs_to_wandb(trainer) or getattr(trainer.strategy, "zero_stage_3", False):
            return  # DeepSpeed gathers weights in its own forward pass alone
        if not (sharded or trainer.is_global_zero) or not (rows := pictured(data)):
            return  # a sharded model answers on all processes or none
        self.captions[trainer.global_step] = describe(pl_module, data, rows)
        if (run := wandb_run(trainer)) is None:
            return
        held_out = data.held_out["caption"]
        columns = ["image", "prompt", "reference", *(f"step {step}" for step in self.captions)]
        table = wandb.Table(columns)
        for place, row in enumerate(rows):
            said = [captions[place] for captions in self.captions.values()]
            table.add_data(wandb.Image(thumbnail(held_out.images[row])), *texts(data, row), *said)
        run.log({"captions": table, "trainer/global_step": trainer.global_step - 1})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := wandb_run(trainer):
            artifact = wandb.Artifact(f"adapter-{run.id}", type="adapter")
            artifact.add_dir(str(self.adapter))
            run.log_artifact(artifact)


def logs_to_wandb(trainer: Trainer) -> bool:
    """Whether there is a wandb run of this training; all processes know."""
    return any(isinstance(logger, WandbLogger) for logger in trainer.loggers)


def wandb_run(trainer: Trainer) -> Any:
    """The wandb run of this training, on the first process; ``None`` on others and where there is none."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def pictured(data: JointData) -> list[int]:
    """The first held-out caption of each of a few pictures, always the same."""
    held_out = data.held_out.get("caption")
    rows: dict[Any, int] = {}
    for row, image in enumerate(held_out.images if held_out is not None else ()):
        if held_out.features is not None:
            rows.setdefault(image, row)
    return [rows[image] for image in sorted(rows)[:PICTURES]]


def texts(data: JointData, row: int) -> tuple[str, str]:
    """The prompt and the reference of a held-out caption."""
    sample = data.held_out["caption"][row]
    return tuple(
        data.tokenizer.decode([token for token in part.tolist() if token >= 0]).strip()  # image tokens are below 0
        for part in (sample.tokens[: sample.prompt_length], sample.tokens[sample.supervised])
    )


@torch.no_grad()
def describe(module: LightningModule, data: JointData, rows: list[int]) -> list[str]:
    """What the model says now about the pictures of some held-out captions, greedily.

    All answers are as long as they may be, and are cut afterwards: the processes of a sharded model must take as many
    steps as each other, and one that saw an answer end a token earlier would let the others wait for ever.
    """
    samples = [data.held_out["caption"][row] for row in rows]
    features = torch.stack([sample.features for sample in samples]).float().to(module.trainer.strategy.root_device)
    template, tokenizer = data.template, data.tokenizer
    control = [template.stop] if template.stop in template.control_tokens else []
    ends = {*tokenizer.stop_ids, *map(tokenizer.token_id, control)}
    if isinstance(module.model, FSDPModule):
        module.model.unshard()  # the adapter, embeddings and head; generation passes by its forward
    answers = generate(
        module.model.llama,
        [sample.tokens[: sample.prompt_length].tolist() for sample in samples],
        eos_id=[],
        hooks=module.model.bind(features, keep=True),
        max_new_tokens=LONGEST_CAPTION,
    )
    text = AnswerText(tokenizer.decode, [template.stop] if template.stop and not control else [])
    return [text.whole(list(itertools.takewhile(lambda token: token not in ends, ids))) for ids in answers]


def thumbnail(path: Path) -> Image.Image:
    image = read_picture(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image
