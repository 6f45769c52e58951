"""A real optimizer for each task, held by one (V2 paper, sec 4.2: joint training of disjoint parameters).

Lightning's automatic optimization, DDP, FSDP2 and gradient accumulation want one ``torch.optim.Optimizer``; two tasks
want their own classes, learning rates, decays, schedules and clipping. :class:`TaskOptimizers` is both.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lav2.adapter.ownership import part

RANGES = {
    "gate_rate": (lambda value: value > 0, "above 0"),
    "weight_decay": (lambda value: value >= 0, "from 0 up"),
    "warmup": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "final": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "clip": (lambda value: value > 0, "above 0, or null"),
}


@dataclass
class TaskOptim:
    """How one task's parameters are optimized.

    Args:
        optimizer: parameters → optimizer, such as ``functools.partial(torch.optim.AdamW, lr=…)``.
        gate_rate: the gates' learning rate, as a multiple of the others'. A gate starts at zero and is one number:
            at the common rate a short run ends before it has opened.
        weight_decay: on matrices only. Gates, biases, scales and norms are never decayed: a scale pulled to zero would
            silence its layer.
        warmup: fraction of all steps over which the learning rate rises linearly from 0.
        final: fraction of the learning rate left at the end of the cosine.
        clip: the largest norm of this task's gradient; ``None`` does not clip.
    """

    optimizer: Callable[..., Optimizer]
    gate_rate: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.0
    final: float = 0.0
    clip: float | None = None

    def problems(self) -> list[str]:
        """Every value that cannot be meant, one line each."""
        found = []
        for name, (fits, meaning) in RANGES.items():
            value = getattr(self, name)
            if name == "clip" and value is None:
                continue
            if type(value) not in (int, float) or not math.isfinite(value) or not fits(value):
                found.append(f"{name} is {value!r}; it must be a number {meaning}")
        return found

    def build(self, task: str, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        """The optimizer of ``task``'s parameters, given by name: one group each of matrices, vectors and gates."""
        groups: dict[str, dict[str, Any]] = {
            "matrices": {"params": [], "weight_decay": self.weight_decay, "task": task},
            "vectors": {"params": [], "weight_decay": 0.0, "task": task},
            "gates": {"params": [], "weight_decay": 0.0, "task": task},
        }
        for name, parameter in parameters.items():
            kind = "gates" if part(name) == "gates" else "matrices" if parameter.dim() > 1 else "vectors"
            groups[kind]["params"].append(parameter)
        optimizer = self.optimizer([group for group in groups.values() if group["params"]])
        if groups["gates"]["params"]:
            optimizer.param_groups[-1]["lr"] *= self.gate_rate
        return optimizer

    def factor(self, step: int, total: int) -> float:
        """The learning rate's factor at ``step`` of ``total``: linear warm-up, then half a cosine down to ``final``."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class TaskOptimizers(Optimizer):
    """Optimizers of disjoint parameters, as one: it shares their parameter groups and their state.

    ``param_groups`` is the union of theirs (each group carries its ``task``), so schedulers, checkpoints and strategies
    see a plain optimizer; ``step`` lets each do its own step.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]):
        self.optimizers = dict(optimizers)
        self.trained: set[str] | None = None  # the groups that the present step trains; None is all
        super().__init__([group for optimizer in self.optimizers.values() for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the optimizers work on this one's groups and state."""
        for task, optimizer in self.optimizers.items():
            optimizer.param_groups = [group for group in self.param_groups if group["task"] == task]
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()  # DeepSpeed calls this for one of the parameter groups after another
        for group, optimizer in self.optimizers.items():
            if self.trains(group):
                optimizer.step()  # of an idle group it would move parameters even so, by their momentum and decay
        return loss

    def begin(self) -> None:
        """A step begins: what was noted for the one before is over. (:meth:`step` may be called more than once.)"""
        self.trained = None

    def note_trained(self, groups: Iterable[str]) -> None:
        """Let this step be of these groups, and those noted since it began, alone."""
        self.trained = (self.trained or set()) | set(groups)

    def trains(self, group: str) -> bool:
        """Whether this step moves ``group``."""
        return self.trained is None or group in self.trained

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def parameters(self, task: str) -> list[nn.Parameter]:
        """What ``task`` trains."""
        return [parameter for group in self.optimizers[task].param_groups for parameter in group["params"]]


def learning_rate(optimizer: Optimizer, task: str) -> float:
    """The learning rate of ``task``'s first parameters."""
    return next(group["lr"] for group in optimizer.param_groups if group["task"] == task)


def schedule(optimizer: TaskOptimizers, settings: Mapping[str, TaskOptim], total_steps: int) -> LambdaLR:
    """Each task's warm-up and cosine over ``total_steps`` optimizer steps."""
    return LambdaLR(
        optimizer,
        [lambda step, s=settings[group["task"]]: s.factor(step, total_steps) for group in optimizer.param_groups],
    )
