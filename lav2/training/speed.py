"""What a run costs: tokens a second and memory."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Speed(Callback):
    """Logs, beside the losses, tokens a second (of all processes, padding not counted) and the peak memory so far.

    The time is that of steps: forward and backward passes and the optimizer. Waiting for the next batch, validations
    and checkpoints are not counted.
    """

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.seconds, self.start = 0.0, time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        self.tokens += [rows["lengths"].sum() for rows in batch.values()]
        self.seconds += time.monotonic() - self.start
        if trainer.global_step % trainer.log_every_n_steps:
            return
        tokens = trainer.strategy.reduce(torch.stack(self.tokens).sum().float(), reduce_op="sum")
        pl_module.log("speed/tokens_per_second", tokens.item() / self.seconds)
        pl_module.log("speed/memory_mb", peak_memory_mb())
        self.tokens, self.seconds = [], 0.0


def peak_memory_mb() -> float:
    """The most memory in use since :func:`reset_peak_memory`: of the GPU, or else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 2**10, 1)
    import resource  # here, since Windows has none

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)


def reset_peak_memory() -> None:
    """Begin anew, so that a job of a sweep is not charged with those before it in the same process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux: the peak becomes what is in use now
            Path("/proc/self/clear_refs").write_text("5")


def device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
