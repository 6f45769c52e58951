"""``plan=true``: what each GPU will hold, before a weight is there, and what to change where it is too much."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lav2.adapter import AdaptedLlama
from lav2.adapter.ownership import owned, trained_groups
from lav2.data.sources import has_images
from lav2.errors import UserError
from lav2.llama.quantization import is_quantized, quantized, stored_bytes
from lav2.training.allocations import step_memory
from lav2.training.data import JointData
from lav2.training.optimizers import TaskOptim
from lav2.training.strategies import strategy_name
from lav2.vision.towers import bare_tower, has_class_token, token_shape

GPUS = {"40 GB": 40e9, "80 GB": 80e9}
USABLE = 0.9  # the rest is for CUDA's context, communication buffers and fragmentation, which nothing here can measure
GATHERED_BLOCKS = 3  # under FSDP2: the block at work, the next one, and the buffer that it arrives in


@dataclass(frozen=True)
class Setting:
    """What the plan may change: where things lie, and what a step keeps.

    Args:
        strategy: ``single``, ``ddp`` or ``fsdp2``.
        devices: GPUs, of all nodes.
        recompute: activation checkpointing.
        offload: under FSDP2, shares stay in the host's memory.
        quantize: of the frozen base.
        rows: the samples of a batch and device, for each task.
        accumulate: batches of a step.
    """

    strategy: str
    devices: int
    recompute: bool
    offload: bool
    quantize: str | None
    rows: Mapping[str, int]
    accumulate: int = 1


@dataclass
class Planner:
    """Memory by setting, for one model and its longest batches.

    Args:
        model: the adapted model on the meta device.
        feature_width, image_tokens: of the features that samples with an image carry.
        lengths: the longest samples, for each task.
        images: the tasks whose samples have images.
        moments: values that the optimizer keeps for each that trains.
        encoder: bytes of the image encoder, which stays on the GPU.
        by_turns: each step sees one task (``data.mode`` alternate or ratio).
    """

    model: AdaptedLlama
    feature_width: int | None
    image_tokens: int
    lengths: Mapping[str, int]
    images: frozenset[str]
    moments: int
    encoder: int = 0
    by_turns: bool = False
    steps: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # what has been counted before

    def memory(self, setting: Setting) -> dict[str, float]:
        """Bytes on each GPU, by what they are for."""
        llama, sharded = self.model.llama, setting.strategy == "fsdp2"
        dtype = llama.norm.weight.dtype
        frozen = sum(self.bytes_of(name, p, setting.quantize) for name, p in llama.named_parameters())
        groups = trained_groups(self.model, self.lengths, self.model.config.ownership)
        trained = sum(4 * p.numel() for group in groups for p in owned(self.model, group).values())
        share = (0 if setting.offload else 1 / setting.devices) if sharded else 1
        kept, at_loss, in_backward = self.step(setting)
        if sharded:  # the worst of three moments: the loss, the last block's backward pass, the gradients' exchange
            blocks = GATHERED_BLOCKS * sum(p.numel() for p in llama.layers[0].parameters())
            outer = sum(p.numel() for name, p in llama.named_parameters() if not name.startswith("layers."))
            outer, blocks = dtype.itemsize * outer, dtype.itemsize * blocks
            worst = [
                (outer, trained * share, kept, at_loss),
                (outer + blocks, trained * share, kept, in_backward),
                (outer + blocks, trained * (2 + share), 0, 0),
            ]
        else:
            unpacked = dtype.itemsize * max(p.numel() for p in llama.layers[0].parameters()) if setting.quantize else 0
            worst = [(unpacked, trained * (2 if setting.strategy == "ddp" else 1), kept, max(at_loss, in_backward))]
        gathered, gradients, activations, passing = max(worst, key=sum)
        return {
            "base weights" + (f", 1/{setting.devices}" if sharded else ""): frozen * share,
            "weights gathered or unpacked in passing": gathered,
            "trainables": trained * (1 + share if sharded else 1),
            "gradients": gradients,
            "optimizer": self.moments * trained * share,
            "image encoder": self.encoder,
            "activations": activations,
            "logits, loss and what passes": passing,
        }

    def step(self, setting: Setting) -> tuple[int, int, int]:
        """See :func:`lav2.training.allocations.step_memory`."""
        known = f"{setting.rows} {setting.recompute}"
        if known not in self.steps:
            batches = {
                task: (setting.rows[task], length - 1, self.image_tokens if task in self.images else 0)
                for task, length in self.lengths.items()
            }
            llama, config = self.model.llama, self.model.config
            dtype = llama.norm.weight.dtype
            turns = [{task: batch} for task, batch in batches.items()] if self.by_turns else [batches]
            self.steps[known] = max(
                (step_memory(llama.config, config, self.feature_width, dtype, one, setting.recompute) for one in turns),
                key=lambda step: step[0] + max(step[1:]),
            )
        return self.steps[known]

    def bytes_of(self, name: str, parameter: torch.Tensor, quantize: str | None) -> float:
        """Of one weight of the base, as it will be stored."""
        if quantize is None or not is_quantized(name):
            return parameter.numel() * parameter.element_size()
        few = torch.zeros(64, parameter.shape[1], dtype=parameter.dtype)
        return len(parameter) / 64 * stored_bytes(quantized(name, few, quantize))

    def changes(self, setting: Setting) -> dict[str, Setting]:
        """What could be changed, by how the command line says it, the gentlest first; each goes on from the last."""
        found, words = {}, []

        def change(word: str, **values: Any) -> None:
            nonlocal setting
            words.append(word)
            setting = replace(setting, **values)
            found[" ".join(words)] = setting

        if not setting.recompute:
            change("activation_checkpointing=true", recompute=True)
        if setting.strategy != "fsdp2" and setting.devices > 1 and setting.quantize is None:
            change("strategy=fsdp2", strategy="fsdp2")
        if max(setting.rows.values()) > 1:
            parts = math.gcd(*setting.rows.values())  # so that a step has as many samples as before
            parts = max(few for few in (1, 2, 3, 4) if parts % few == 0)
            rows = {task: count // parts for task, count in setting.rows.items()}
            sizes = ", ".join(f"{task}: {count}" for task, count in rows.items())
            if parts > 1:
                batches = f"trainer.accumulate_grad_batches={parts * setting.accumulate}"
                change(f"'data.batch_size={{{sizes}}}' {batches}", rows=rows)
        if setting.strategy == "fsdp2" and not setting.offload:
            change("strategy.strategy.offload=true", offload=True)
        if setting.strategy != "fsdp2" and setting.quantize is None:
            change("llama.quantize=nf4", quantize="nf4")
        return found


def planned(cfg: DictConfig, model: AdaptedLlama, data: JointData, optim: Mapping[str, TaskOptim]) -> tuple:
    """The :class:`Planner` and the :class:`Setting` of a config.

    Raises:
        UserError: it has what no plan is made for.
    """
    strategy, devices = strategy_name(cfg.strategy), cfg.trainer.devices
    if strategy not in ("single", "ddp", "fsdp2"):
        raise UserError(f"plan=true knows strategy=single, ddp and fsdp2; it cannot plan {strategy}")
    if model.config.fusion == "tokens" or model.config.mixture.vision_blocks:
        raise UserError("plan=true knows adapters that read features; it cannot plan image tokens and mixtures (LaVIN)")
    if type(devices) is not int or devices < 1:
        raise UserError(f"trainer.devices is {devices!r}; plan=true needs the number of GPUs")
    images = {"caption"} if "caption" in cfg.tasks else set()
    if "instruction" in cfg.tasks and any(map(has_images, data.instructions)):
        images.add("instruction")
    tokens, tower = token_shape(cfg.vision.name)[0], bare_tower(cfg.vision.name)
    seen = {"patches": tokens - has_class_token(tower), "patches_and_class": tokens}
    planner = Planner(
        model,
        model.feature_width,
        seen.get(cfg.vision.tokens) or len(cfg.vision.layers),
        {task: data.max_length[task] for task in cfg.tasks},
        frozenset(images),
        max(map(moments, optim.values())),
        sum(4 * parameter.numel() for parameter in tower.parameters()) if images else 0,
        data.mode in ("alternate", "ratio"),
    )
    offload = strategy == "fsdp2" and cfg.strategy.strategy.offload
    rows = {task: data.batch_size[task] for task in cfg.tasks}
    count = devices * cfg.trainer.num_nodes
    accumulate = cfg.trainer.get("accumulate_grad_batches", 1)
    chosen = (cfg.activation_checkpointing, offload, cfg.llama.quantize)
    return planner, Setting(strategy, count, *chosen, rows, accumulate)


def moments(optim: TaskOptim) -> int:
    """How many values the optimizer keeps for each that it trains: two in AdamW."""
    stand_in = torch.nn.Parameter(torch.zeros(2, 2))
    stand_in.grad = torch.zeros(2, 2)
    optimizer = optim.build("caption", {"adapter.caption.projector.queries": stand_in})
    optimizer.step()
    return sum(
        isinstance(value, torch.Tensor) and value.shape == (2, 2) for value in optimizer.state[stand_in].values()
    )


def fits(memory: Mapping[str, float], size: float) -> bool:
    """Whether a GPU of ``size`` bytes holds it."""
    return sum(memory.values()) <= USABLE * size


def print_plan(planner: Planner, setting: Setting) -> None:
    """Print what each GPU will hold, whether it fits and, where it does not, what each change would bring."""
    memory = planner.memory(setting)
    batch = " and ".join(
        f"{setting.rows[task]} {task} samples of {length} tokens" for task, length in planner.lengths.items()
    )
    table = Table("on each GPU", "GB", title=f"{setting.strategy}, {setting.devices} devices; {batch}, all supervised")
    table.columns[1].justify = "right"
    for name, size in memory.items():
        if size:
            table.add_row(name, f"{size / 1e9:,.2f}")
    table.add_section()
    table.add_row("together", f"{sum(memory.values()) / 1e9:,.2f}")
    for name, size in GPUS.items():
        table.add_row(f"fits into {name}, with {1 - USABLE:.0%} left over", "yes" if fits(memory, size) else "no")
    console = Console()
    console.print(table)
    if fits(memory, min(GPUS.values())):
        return
    table = Table("what to change", "GB", *GPUS, title="each line with those above it")
    for words, other in planner.changes(setting).items():
        changed = planner.memory(other)
        answers = ["yes" if fits(changed, size) else "no" for size in GPUS.values()]
        table.add_row(words, f"{sum(changed.values()) / 1e9:,.2f}", *answers)
        if "no" not in answers:
            break
    if table.row_count:
        console.print(table)
    more = (
        "more devices (trainer.devices, trainer.num_nodes)" if setting.devices > 1 else "strategy=fsdp2 on more devices"
    )
    console.print(f"Also: shorter samples (data.max_length), or {more}.")
