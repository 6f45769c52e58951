"""Checkpoints that survive a kill at any moment, and the newest good one among them."""

import io
import signal
import threading
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lav2.disk import write_whole
from lav2.errors import UserError

KEPT = 2  # checkpoints: should the newest be damaged, there is another


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all. (Lightning's own is moved over from the system's temporary folder, a
    copy if that is another disk, and is not flushed.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()  # an adapter and its optimizers: megabytes
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest good checkpoint in ``folder``, or ``None`` if there is none at all; damaged ones are named.

    Raises:
        UserError: every one is damaged.
    """
    found = by_step(folder)
    for path in reversed(found):
        fault = damage(path)
        if fault is None:
            return path
        rank_zero_only(print)(f"{path} is damaged ({fault}); going back to the one before")
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged: remove them and start the run anew")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums inside; ``None`` if nothing is."""
    if path.is_dir():  # DeepSpeed's, which writes this file last
        return None if (path / "latest").is_file() else "its file latest is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return str(error)
    return None if broken is None else f"{broken} is not what was written"


class Stopped(SystemExit):
    """The run was asked to stop, and has saved."""


class Checkpoints(Checkpoint):
    """Saves every so many steps and at the last, and keeps the newest ``KEPT``; SIGTERM and Ctrl-C save after the step
    they meet, and end the run; a second Ctrl-C ends it at once.

    Several processes agree on the step. A handler of SIGUSR2, with which submitit puts its job back into the queue of
    Slurm, is called after the checkpoint was written. (Lightning itself ends a run at any batch, saving nothing.)
    """

    def __init__(self, folder: str | Path, every: int):
        self.folder, self.every = Path(folder), every
        self.step = 0  # the last one seen: with accumulation not every batch ends a step
        self.received: signal.Signals | None = None
        self.stopping = False
        self.handlers: dict[signal.Signals, Any] = {}  # those that were there before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step
        if self.step:
            rank_zero_only(print)(f"going on from step {self.step} of {trainer.estimated_stepping_batches}")
        if threading.current_thread() is not threading.main_thread():
            return  # no other thread may handle signals
        launcher = trainer.strategy.launcher

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.received is not None:
                raise KeyboardInterrupt  # asked twice: at once
            if self.received is None and number == signal.SIGTERM and launcher is not None:
                launcher.kill(number)  # the processes that this one started
            self.received = signal.Signals(number)

        requeues = callable(signal.getsignal(signal.SIGUSR2))
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR2] if requeues else [])):
            self.handlers[number] = signal.signal(number, note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_index: int) -> None:
        if not self.stopping:
            return
        where = trainer.default_root_dir
        rank_zero_only(print)(f"stopped at step {trainer.global_step} and saved; resume={where} goes on")
        if self.received == signal.SIGUSR2:
            self.handlers[signal.SIGUSR2](signal.SIGUSR2, None)
        raise Stopped(128 + (signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            return  # a part of a step: its gradients would be lost
        self.step = trainer.global_step
        # Only at the next batch the run ends: the metrics of this step are logged first
        self.stopping = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        if self.stopping or self.step % self.every == 0 or self.step >= trainer.estimated_stepping_batches:
            trainer.save_checkpoint(self.folder / f"step={self.step}.ckpt")
            for path in superseded(self.folder, self.step):
                trainer.strategy.remove_checkpoint(path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give Lightning its handlers back, before it restores those it found."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()


def superseded(folder: Path, step: int) -> list[Path]:
    """The checkpoints to remove once that of ``step`` is written; later ones are damaged, or it would not be so far."""
    earlier = [path for path in by_step(folder) if step_of(path) <= step]
    return [path for path in by_step(folder) if path not in earlier[-KEPT:]]


def by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), key=step_of)


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step="))
