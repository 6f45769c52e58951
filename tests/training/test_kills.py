"""What ends a run, and what must survive it: kill -9, SIGTERM, a full disk, a damaged checkpoint, a NaN."""

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from lav2 import disk
from lav2.cli import mistake
from lav2.data.tokens import Samples
from lav2.errors import UserError
from lav2.evaluation.runs import read_run
from lav2.training.checkpoints import newest_checkpoint
from lav2.training.module import JointModule
from lav2.training.run import train
from tests.training.test_joint import adapter, metrics

SHORT = ("callbacks.checkpoint_every=2", "trainer.limit_val_batches=0", "trainer.max_steps=5")


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(config(*SHORT), folder)
    return folder


def equal(one: Path, two: Path) -> bool:
    return all(torch.equal(value, adapter(two)[name]) for name, value in adapter(one).items())


@pytest.fixture
def nan_in_step_two(monkeypatch):
    """A caption's features turn out to be NaN: of the sample that comes twelfth, in batches of eight."""
    whole, drawn = Samples.__getitem__, []

    def item(self, index):
        sample = whole(self, index)
        if sample.features is not None:
            drawn.append(index)
            if len(drawn) >= 12 and index == drawn[11]:
                sample.features = sample.features * float("nan")
        return sample

    monkeypatch.setattr(Samples, "__getitem__", item)


def test_a_nan_stops_the_run_and_names_the_samples(run, tmp_path, nan_in_step_two):
    found = r"step 1: the caption group's gradient is not finite: caption loss nan, samples .*on_nan=skip"
    with pytest.raises(UserError, match=found) as stop:
        run("run", *SHORT, "callbacks.checkpoint_every=1")
    assert sum(str(stop.value).count(file) for file in ("captions.json", "details.json")) == 8  # the batch
    assert record(tmp_path / "run")["state"] == "failed" and "not finite" in record(tmp_path / "run")["reason"]
    assert all(value.isfinite().all() for value in adapter(tmp_path / "run").values())


def test_a_nan_that_is_skipped_moves_nothing(run, whole, nan_in_step_two, capsys):
    """The other task trains on, as if nothing had been."""
    folder = run("run", *SHORT, "on_nan=skip")
    trained, clean = adapter(folder), adapter(whole)
    assert all(value.isfinite().all() for value in trained.values())
    for name, value in trained.items():
        assert torch.equal(value, clean[name]) == name.startswith("instruction."), name
    assert capsys.readouterr().out.count("The step is left out") == 1
    assert metrics(folder)[-1]["train/skipped_steps"] == "1.0"


def forked(task) -> int:
    """The exit status of ``task`` in a process of its own, which has everything in memory already."""
    if (child := os.fork()) == 0:
        try:
            task()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["in a step", "in a checkpoint"])
def test_kill_9_and_resume_equals_uninterrupted(config, whole, tmp_path, moment):
    """In the third step, or half-way through writing the checkpoint of step 4."""
    folder = tmp_path / "killed"

    def killed():
        write, step = Path.open, JointModule.training_step
        victim = "step=4.ckpt" if moment == "in a checkpoint" else "no file"

        def half(path, *arguments, **settings):
            if victim in path.name:
                with write(path, *arguments, **settings) as file:
                    file.write(b"half of")
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, *arguments, **settings)

        def training_step(module, batch, index):
            if moment == "in a step" and module.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(module, batch, index)

        Path.open, JointModule.training_step = half, training_step
        train(config(*SHORT), folder)

    assert forked(killed) == -signal.SIGKILL
    assert read_run(folder).state == "killed"
    assert [path.name for path in (folder / "checkpoints").glob("[!.]*")] == ["step=2.ckpt"], "half of one is none"
    if moment == "in a checkpoint":
        (half_written,) = folder.glob("checkpoints/.*.tmp")
        assert half_written.read_bytes() == b"half of"
    train(config(*SHORT, f"resume={folder}"), folder)
    assert equal(folder, whole) and metrics(folder) == metrics(whole) and record(folder)["state"] == "finished"
    assert not list(folder.rglob("*.tmp")), "what the killed writer left"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_exits(run, config, whole, tmp_path, monkeypatch, capsys, number, code):
    """In the middle of a step that is no checkpoint's; the step's metrics are not lost either."""
    step, folder, handler = JointModule.training_step, tmp_path / "stopped", signal.getsignal(signal.SIGINT)

    def terminated(module, batch, index):
        if module.global_step == 2:
            os.kill(os.getpid(), number)
        return step(module, batch, index)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(JointModule, "training_step", terminated)
        run("stopped", *SHORT)
    assert stop.value.code == code and record(folder)["state"] == "stopped"
    assert f"stopped at step 3 and saved; resume={folder} goes on" in capsys.readouterr().out
    assert newest_checkpoint(folder / "checkpoints").name == "step=3.ckpt"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # what was there before the run
    assert signal.getsignal(signal.SIGINT) == handler
    train(config(*SHORT, f"resume={folder}"), folder)
    printed = capsys.readouterr().out
    assert "going on from step 3 of 5\n" in printed and f"finished at step 5; the run is in {folder}\n" in printed
    assert equal(folder, whole) and metrics(folder) == metrics(whole)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step=4.ckpt", "step=5.ckpt"}


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(config, whole, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    before, newest = (folder / "checkpoints" / f"step={step}.ckpt" for step in (4, 5))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(config(*SHORT, f"resume={folder}"), folder)
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert equal(folder, whole) and metrics(folder) == metrics(whole)
    for path in (before, newest):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        train(config(*SHORT, f"resume={folder}"), folder)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(config, whole, tmp_path, monkeypatch):
    """The kernel's own error, where a small file system can be mounted; else the same error by hand."""
    folder = tmp_path / "disk" / "run"
    folder.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder.parent]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    step, filler = JointModule.training_step, folder.parent / "filler"

    def no_space(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def filled(module, batch, index):
        if module.global_step == 3:
            if mounted:
                subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1k"], capture_output=True)
            else:
                monkeypatch.setattr(disk.os, "fsync", no_space)
        return step(module, batch, index)

    try:
        with monkeypatch.context() as patch, pytest.raises(OSError) as full:
            patch.setattr(JointModule, "training_step", filled)
            train(config(*SHORT), folder)
        line = mistake(full.value)
        assert line.startswith(f"no space left on the disk {folder}") and "\n" not in line
        assert (record(folder)["state"], record(folder)["reason"]) == ("failed", line)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=2.ckpt"]
        filler.unlink(missing_ok=True)
        monkeypatch.undo()
        train(config(*SHORT, f"resume={folder}"), folder)
        assert equal(folder, whole)
    finally:
        if mounted:
            subprocess.run(["umount", folder.parent])


def test_a_folder_with_a_run_is_not_trained_over(config, whole, tmp_path):
    with pytest.raises(UserError, match="holds a run already: resume=auto goes on with it"):
        train(config(*SHORT), whole)
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    train(config(*SHORT, "resume=auto"), folder)
    assert equal(folder, whole) and metrics(folder) == metrics(whole)


def test_a_task_that_is_never_finite_stops_the_run_in_turns_too(config, tmp_path, monkeypatch):
    """Steps of the other task, between them, do not count for it."""
    item = Samples.__getitem__

    def broken(samples, index):
        sample = item(samples, index)
        if sample.features is not None:
            sample.features = sample.features * float("nan")
        return sample

    monkeypatch.setattr(Samples, "__getitem__", broken)
    monkeypatch.setattr("lav2.training.module.MOST_SKIPPED", 2)
    turns = (
        "data.mode=alternate",
        "trainer.max_steps=12",
        "trainer.limit_val_batches=0",
        "callbacks.checkpoint_every=20",
    )
    with pytest.raises(UserError, match="^step 4: the caption group's gradient is not finite"):
        train(config(*turns, "on_nan=skip"), tmp_path / "run")


def test_gradient_norms_are_of_the_task_that_trains(config, tmp_path):
    """With steps in turns every logged step may be of the same task."""
    turns = "data.mode=alternate", "trainer.max_steps=4", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=2"
    train(config(*turns), tmp_path / "run")
    for row in metrics(tmp_path / "run"):
        assert float(row["train/caption_gradient_norm"]) > 0 and float(row["train/instruction_gradient_norm"]) > 0
