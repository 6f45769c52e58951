"""``make soak``: kill -9 a training run at random moments, resume it, and compare with an uninterrupted one.

Half of the kills fall at any moment of the training, where every step writes a checkpoint; a quarter are aimed at the
writing of a checkpoint; a quarter fall into the start of the process. A run whose last step is done is let end and
compared, and another begun.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from lav2.training.checkpoints import by_step, newest_checkpoint, step_of
from tests.training.small import draw, settings

STEPS = 60
AIMS = ("training", "training", "checkpoint", "start")


def command(world: Path, folder: Path, processes: int) -> list[str]:
    devices = ["strategy=ddp", f"trainer.devices={processes}"] if processes > 1 else []
    short = [f"trainer.max_steps={STEPS}", "trainer.val_check_interval=10", "callbacks.checkpoint_every=1"]
    where = ["resume=auto", f"hydra.run.dir={folder}"]
    return [sys.executable, "train.py", "experiment=demo", *settings(world), *short, *devices, *where]


def begun(folder: Path) -> bool:
    """Whether the run is training; ``run.json`` is removed before each start."""
    return (folder / "run.json").is_file()


def attempt(arguments: list[str], folder: Path, aim: str | None, delay: float) -> tuple[int, str]:
    """Start or resume the run and, with an ``aim``, kill all its processes: ``delay`` seconds after the process started
    (``start``) or its training, or at the next checkpoint after that. The exit status, and what was going on."""
    (folder / "run.json").unlink(missing_ok=True)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
    if aim is None:
        return process.wait(), "ended"
    while aim != "start" and not begun(folder) and process.poll() is None:
        time.sleep(0.01)
    try:
        return process.wait(delay), "ended"
    except subprocess.TimeoutExpired:
        pass
    while aim == "checkpoint" and process.poll() is None and not any(folder.glob("checkpoints/.*.tmp")):
        time.sleep(0.001)
    if process.poll() is not None:
        return process.returncode, "ended"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    written = [path.name for path in folder.rglob(".*.tmp")]
    if not begun(folder):
        return -signal.SIGKILL, "starting"
    if any(".ckpt." in name for name in written):
        return -signal.SIGKILL, "writing a checkpoint"
    return -signal.SIGKILL, "writing another file" if written else "training"


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("speed/")} for row in rows]


def newest_step(folder: Path) -> int:
    path = newest_checkpoint(folder / "checkpoints")
    return step_of(path) if path else 0


def check(folder: Path, whole: Path) -> int:
    """Stop if the run's weights differ from the uninterrupted run's; the number of rows its metrics lack."""
    one, two = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (folder, whole))
    differing = [name for name in two if not torch.equal(one[name], two[name])]
    if differing or one.keys() != two.keys():
        sys.exit(f"{folder} ended with other weights than the uninterrupted run: {differing}")
    here, there = metrics(folder), metrics(whole)
    if any(row not in there for row in here):
        sys.exit(f"{folder} ended with other metrics than the uninterrupted run")
    return len(there) - len(here)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="more than 1: strategy=ddp, all processes killed")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    world, whole = draw(place), place / "whole"
    whole.mkdir()
    status, _ = attempt(command(world, whole, chosen.processes), whole, None, 0)
    if status:
        sys.exit(f"the uninterrupted run failed; see {whole}.log")
    training = json.loads((whole / "run.json").read_text())["seconds"]
    print(f"uninterrupted: {STEPS} steps in {training} s, {chosen.processes} process(es); files in {place}", flush=True)

    moments: Counter[str] = Counter()
    runs = lost_rows = damaged = 0
    while sum(moments.values()) < chosen.kills:
        runs += 1
        folder = place / f"run-{runs}"
        folder.mkdir()
        status = -signal.SIGKILL
        while status:
            done = sum(moments.values()) == chosen.kills or newest_step(folder) == STEPS
            aim = None if done else rng.choice(AIMS)
            delay = rng.uniform(0, 5 if aim == "start" else training / 8)
            status, moment = attempt(command(world, folder, chosen.processes), folder, aim, delay)
            if status not in (0, -signal.SIGKILL):
                sys.exit(f"a resumed run failed with status {status}; see {folder}.log")
            if status:
                moments[moment] += 1
                found = by_step(folder / "checkpoints")
                damaged += bool(found) and step_of(found[-1]) != newest_step(folder)
                print(f"kill {sum(moments.values())}: {moment}, step {newest_step(folder)}", flush=True)
        lost_rows += check(folder, whole)
    print(f"{sum(moments.values())} kills in {runs} runs: " + ", ".join(f"{n} {what}" for what, n in moments.items()))
    print(
        f"every run ended with the uninterrupted run's weights, bit for bit; damaged checkpoints: {damaged}; ", end=""
    )
    print(f"rows that metrics.csv lacks: {lost_rows} of {runs * len(metrics(whole))}")


if __name__ == "__main__":
    main()
