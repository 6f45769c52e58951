"""Training runs in several processes that are forked from this one, whose imports and data they share; not a test."""

import json
import os
import socket
from pathlib import Path
from unittest import mock

from hydra import compose, initialize_config_dir
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.multiprocessing import start_processes

from lav2.cli import CONF, register_resolvers
from lav2.training import sharding
from lav2.training.module import JointModule
from lav2.training.run import train

Job = tuple[Path, list[str], int | None]  # run folder, overrides, the step to be killed at


def run(folder: Path, overrides: list[str], step: int | None = None) -> None:
    """Train as the overrides say; ``<folder>_<rank>.json`` then tells how many numbers of a sharded base were read."""
    numbers, read, training_step = [], sharding.read_tensor, JointModule.training_step

    def counted(checkpoint, name, into, rows=slice(None)):
        numbers.append(into.numel())
        read(checkpoint, name, into, rows)

    def dies(self, batch, index):
        if self.global_step == step:
            raise MemoryError("killed")
        return training_step(self, batch, index)

    register_resolvers()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        mock.patch.object(sharding, "read_tensor", counted),
        mock.patch.object(JointModule, "training_step", dies),
    ):
        try:
            train(compose("train", overrides), folder)
        except MemoryError:
            assert step is not None
    folder.with_name(f"{folder.name}_{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(sum(numbers)))


def one_process(rank: int, port: int, jobs: list[Job]) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank
    for job in jobs:
        run(*job)


def run_in_processes(jobs: list[Job], count: int = 2) -> None:
    """Run the jobs, one after the other, in ``count`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_process, (port, jobs), nprocs=count, start_method="fork")
