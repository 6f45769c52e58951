"""``run.json``: how a run stands or ended, and what it took; for the report over many runs."""

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lav2.cli import in_sweep, told
from lav2.disk import remove_leftovers, write_whole
from lav2.run_folder import CONFIG, RECORD
from lav2.training.speed import device_name, peak_memory_mb, reset_peak_memory

BLOCK = 4096  # bytes that a disk gives a file at once


class RunRecord(Callback):
    """Keeps ``run.json`` while a run trains: its state, process, seconds (over all resumptions), peak memory."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_leftovers(self.folder)
        reset_peak_memory()
        self.before = read_record(self.folder).get("seconds", 0.0)
        self.start = time.monotonic()
        self.update(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.update(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.update(trainer)

    def update(self, trainer: Trainer) -> None:
        write_record(
            self.folder,
            state="running",
            reason=None,
            process=process(),
            steps=trainer.global_step,
            seconds=round(self.before + time.monotonic() - self.start, 1),
            peak_memory_mb=peak_memory_mb(),
            device=device_name(trainer),
            processes=trainer.world_size,
        )


def recorded(train: Callable[[DictConfig, Path], Any]) -> Callable[[DictConfig, Path], Any]:
    """Let ``train(cfg, folder)`` leave in the folder how it ended. What ends before it trains (a report on
    the data, a plan, the parameter table alone) or fails leaves nothing, except for a failed job of a sweep, whose
    settings and reason the sweep's report shows."""

    @functools.wraps(train)
    def wrapped(cfg: DictConfig, folder: Path) -> Any:
        try:
            result = train(cfg, folder)
        except BaseException as error:
            if in_sweep() and not (folder / CONFIG).is_file():
                with contextlib.suppress(OSError, OmegaConfBaseException):  # which may be what failed
                    keep_config(cfg, folder)
            if in_sweep() or trains_here(folder):
                asked = isinstance(error, SystemExit | KeyboardInterrupt)
                write_record(folder, **{"state": "stopped"} if asked else {"state": "failed", "reason": told(error)})
            raise
        if trains_here(folder):
            write_record(folder, state="finished", reason=None)
        return result

    return wrapped


@rank_zero_only
def keep_config(cfg: DictConfig, folder: Path) -> None:
    """Write ``config.yaml``, with its interpolations resolved."""
    write_whole(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))


@rank_zero_only
def write_record(folder: Path, **values: Any) -> None:
    """Set ``values`` in the record and leave the others. A full disk still takes why a run failed: the block that the
    record has is written over."""
    content = json.dumps(read_record(folder) | values, indent=2) + "\n"
    try:
        write_whole(folder / RECORD, content)
    except OSError:
        if values["state"] != "failed":
            raise
        if len(content) <= BLOCK:
            with contextlib.suppress(OSError), (folder / RECORD).open("r+") as file:
                file.write(content)
                file.truncate()


def read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # there is none yet, or a kill fell into the words on a full disk
        return {}


def trains_here(folder: Path) -> bool:
    """Whether the record in ``folder`` is that of a training in this process."""
    found = read_record(folder)
    return (found.get("state"), found.get("process")) == ("running", process())


def process() -> str:
    """This process, by host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"
