"""What a run logs."""

import csv
import time

import wandb

from lav2.training.callbacks import MetricsFile


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_continues_its_metrics_without_what_it_repeats(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": 4.0 - step}, step)
    first.save()
    second = MetricsFile(tmp_path)
    second.log_metrics({"loss": 1.5, "new": 7.0}, 2)
    second.log_metrics({"more": 8.0}, 2)
    second.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("0", "4.0"), ("1", "3.0"), ("2", "1.5")]
    assert rows(tmp_path)[2]["new"] == "7.0" and rows(tmp_path)[2]["more"] == "8.0"


def test_wandb_runs_offline_without_a_key(run, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = run("run", "logger=wandb", "trainer.max_steps=2")
    wandb.teardown()
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # its service may still be writing, after its own word that it has finished
    while b"train/caption_loss" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert b"train/caption_loss" in written.read_bytes()
    assert len(rows(folder)) == 2  # metrics.csv is there all the same
