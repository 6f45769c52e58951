"""Training runs in several processes, which are forked from one of their own so that torch is imported once; no test.

They cannot be forked from pytest's: autograd may have threads there.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from benchmarks.measure import Gathered
from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError
from lav2.training import sharding
from lav2.training.loss import FrozenHeadLoss
from lav2.training.module import JointModule
from lav2.training.run import train

# run folder, overrides and, if anything happens to the run, what: see run
Job = tuple[Path, list[str]] | tuple[Path, list[str], tuple[int, int] | None, str]


class NanGradient(torch.autograd.Function):
    """The loss as it is, and a gradient that is not finite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def run(folder: Path, overrides: list[str], signaled: tuple[int, int] | None = None, spoils: str = "") -> None:
    """Train as the overrides say; ``<folder>_<rank>.json`` then tells how many numbers of a sharded base were ``read``,
    how many bytes were ``gathered``, which files of the run folder were ``written``, what the run was refused for
    (``error``) or which status it would ``exit`` with, and the places of the samples that made a NaN (``spoiled``): one
    batch of captions in step 1.

    Args:
        signaled: (signal, step): SIGKILL for each process, another one for the last alone.
        spoils: what is NaN in the second process: the ``loss``, or the ``gradient`` alone.
    """
    numbers, read, training_step = [], sharding.read_tensor, JointModule.training_step
    told = {"error": None, "exit": 0, "spoiled": [], "written": written_below(folder)}

    def counted(checkpoint, name, into, rows=slice(None)):
        numbers.append(into.numel())
        read(checkpoint, name, into, rows)

    def stepped(self, batch, index):
        number, step = signaled or (None, None)
        meant = number == signal.SIGKILL or self.global_rank == self.trainer.world_size - 1
        if self.global_step == step and meant:
            os.kill(os.getpid(), number)
        if spoils and (self.global_rank, self.global_step, index) == (1, 1, 2):
            captions = batch["caption"]
            places = self.trainer.datamodule.training["caption"].places
            told["spoiled"] = [places[row] for row in captions["indices"].tolist()]
            if spoils == "gradient":
                return NanGradient.apply(training_step(self, batch, index))
            batch = batch | {"caption": captions | {"features": captions["features"] * float("nan")}}
        return training_step(self, batch, index)

    register_resolvers()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        mock.patch.object(sharding, "read_tensor", counted),
        mock.patch.object(JointModule, "training_step", stepped),
        mock.patch.object(FrozenHeadLoss, "ELEMENTS", 8000),  # so that processes call the head unequally often
        Gathered() as gathered,
    ):
        try:
            train(compose("train", overrides), folder)
        except SystemExit as stop:
            told["exit"] = stop.code
        except UserError as error:
            assert spoils, error
            told["error"] = str(error)
    report = folder.with_name(f"{folder.name}_{os.environ.get('LOCAL_RANK', 0)}.json")
    report.write_text(json.dumps(told | {"read": sum(numbers), "gathered": gathered.bytes}))


def written_below(folder: Path) -> list[str]:
    """A list that grows by every file below ``folder`` that this process, from now on, opens to write."""
    paths = []

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{folder}/") and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            paths.append(str(arguments[0]))

    sys.addaudithook(note)
    return paths


def one_process(rank: int, port: int, jobs: list[Job]) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank
    for job in jobs:
        run(*job)


def let_deepspeed_run_on_cpu() -> None:
    """Take out what Lightning checks and assumes of GPUs; DeepSpeed's own engine does run without."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from lightning.pytorch.strategies import DDPStrategy, deepspeed

    import lav2.config
    from lav2.training import strategies

    lav2.config.device_problems = lambda *_: ()
    config = strategies.deepspeed_config

    def shard_all(*settings) -> dict:  # ZeRO-3 would keep tensors as small as these whole
        given = config(*settings)
        return given | {"zero_optimization": given["zero_optimization"] | {"stage3_param_persistence_threshold": 0}}

    strategies.deepspeed_config = shard_all
    deepspeed._validate_device_index_selection = lambda devices: None
    deepspeed.DeepSpeedStrategy.setup_environment = lambda self: DDPStrategy.setup_environment(self)
    deepspeed.DeepSpeedStrategy.root_device = property(lambda self: torch.device("cpu", 0))


def run_in_processes(jobs: list[Job], count: int = 2) -> None:
    """Run the jobs, one after the other, in ``count`` processes."""
    jobs = [(str(folder), *rest) for folder, *rest in jobs]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.processes", str(count), json.dumps(jobs)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def is_killed(job: Job) -> bool:
    return len(job) > 2 and job[2] is not None and job[2][0] == signal.SIGKILL


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    if "strategy=deepspeed" in sys.argv[2]:
        let_deepspeed_run_on_cpu()
    given = [(Path(folder), *rest) for folder, *rest in json.loads(sys.argv[2])]
    while given:
        count = next((number for number, job in enumerate(given, 1) if is_killed(job)), len(given))
        together, given = given[:count], given[count:]  # the same processes do them, until they are killed
        try:
            start_processes(one_process, (free_port(), together), nprocs=int(sys.argv[1]), start_method="fork")
        except (ProcessExitedException, ProcessRaisedException):  # that of one which sees the other killed
            if not is_killed(together[-1]):
                raise
