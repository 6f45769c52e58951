"""``train.py`` with an accident in a step of its first process, as ``ACCIDENT`` says (``SIGTERM 2``); no test.

``full_disk`` fills the disk that the folder ``DISK`` lies on or, without it, lets every file fail as on a full one.
"""

import contextlib
import errno
import os
import signal
from pathlib import Path

from lav2 import disk
from lav2.cli import run
from lav2.training.module import JointModule
from train import main


def happens(kind: str) -> None:
    if kind == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "SIGKILL":
        os.killpg(0, signal.SIGKILL)
    elif folder := os.environ.get("DISK"):
        with contextlib.suppress(OSError), Path(folder, "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
    else:
        disk.os.fsync = no_space


def no_space(number: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unlucky(training_step):
    kind, _, step = os.environ["ACCIDENT"].partition(" ")

    def stepped(module, batch, index):
        if (module.global_rank, module.global_step) == (0, int(step)):
            happens(kind)
        return training_step(module, batch, index)

    return stepped


if __name__ == "__main__":
    JointModule.training_step = unlucky(JointModule.training_step)
    run(main, "train")
