"""What ends two processes that are started as by the command line: a full disk, SIGTERM, kill -9 of both."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lav2.evaluation.runs import read_run
from lav2.training.checkpoints import newest_checkpoint
from lav2.training.run import train
from tests.training.small import settings
from tests.training.test_joint import metrics
from tests.training.test_strategies import ALONE, TOGETHER

ROOT = Path(__file__).parents[2]
SHORT = ["callbacks.checkpoint_every=2", "trainer.limit_val_batches=0", "trainer.max_steps=5"]


@pytest.fixture
def meets(world, tmp_path):
    """``meets(accident, folder)``: start or resume a run of two processes, till an accident in one of its steps. Its
    exit code, the lines on stderr and what it printed; when they are there, no process holds its end of them."""

    def start(accident: str, folder: Path, **more: str) -> tuple[int, list[str], str]:
        overrides = ["experiment=demo", *settings(world), *SHORT, *TOGETHER, "strategy=ddp", "resume=auto"]
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("accident.py"), *overrides, f"hydra.run.dir={folder}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCIDENT": accident, **more},
        )
        try:
            printed, said = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, said.splitlines(), printed

    return start


def ends_as_one_process_does(folder: Path, whole: Path) -> None:
    """The run goes on in one process, and its losses and norms are those of one that nothing has met."""
    rows, expected = metrics(folder), metrics(whole)
    assert len(rows) == len(expected) == 5
    for row, one in zip(rows, expected, strict=True):
        for column in row:
            assert float(row[column]) == pytest.approx(float(one[column]), abs=1e-5), (row["step"], column)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 32 MB, and what tells the accident of it, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    yield folder, {"DISK": str(folder)} if mounted else {}
    if mounted:
        subprocess.run(["umount", folder])


def test_a_full_disk_is_one_line_and_leaves_no_process(meets, small_disk, config, tmp_path):
    disk, told = small_disk
    code, said, _ = meets("full_disk 3", disk / "run", **told)
    assert code == 2 and len(said) == 1, said
    assert said[0].startswith(f"error: no space left on the disk {disk / 'run'}")
    assert newest_checkpoint(disk / "run" / "checkpoints").name == "step=2.ckpt"
    ended = read_run(disk / "run")
    assert ended.state == "failed" and said[0] == f"error: {ended.reason}"
    (disk / "filler").unlink(missing_ok=True)
    train(config(*SHORT, *ALONE, f"resume={disk / 'run'}"), disk / "run")
    train(config(*SHORT, *ALONE), tmp_path / "whole")
    ends_as_one_process_does(disk / "run", tmp_path / "whole")


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on(meets, config, tmp_path):
    """The first process alone is told to stop, and both save the same step."""
    folder = tmp_path / "run"
    code, _, printed = meets("SIGTERM 0", folder)
    assert code == 143 and read_run(folder).state == "stopped"
    assert printed.count(f"stopped at step 1 and saved; resume={folder} goes on") == 1
    assert newest_checkpoint(folder / "checkpoints").name == "step=1.ckpt"
    code, *_ = meets("SIGKILL 3", folder)
    assert code == -signal.SIGKILL and read_run(folder).state == "killed"
    assert newest_checkpoint(folder / "checkpoints").name == "step=2.ckpt"
    train(config(*SHORT, *ALONE, f"resume={folder}"), folder)
    train(config(*SHORT, *ALONE), tmp_path / "whole")
    ends_as_one_process_does(folder, tmp_path / "whole")
