"""What ends a run, and what must survive it: kill -9, SIGTERM, a full disk, a damaged checkpoint, a NaN."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lav2 import disk
from lav2.cli import mistake
from lav2.data.tokens import Samples
from lav2.errors import UserError
from lav2.training.checkpoints import newest_checkpoint
from lav2.training.run import train
from tests.training.test_joint import adapter, metrics

ROOT = Path(__file__).parents[2]
SHORT = ("trainer.limit_val_batches=0", "trainer.max_steps=5")


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
