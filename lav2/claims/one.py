"""One run of the sweep in a process of its own: train an arm and measure it, or go on where it stopped."""

import json
import os
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, clear_errors, quiet, register_resolvers
from lav2.evaluation.run import evaluate
from lav2.evaluation.runs import read
from lav2.run_folder import RECORD
from lav2.training.run import train


def main() -> None:
    """``python -m lav2.claims.one '{"folder": …, "train": [overrides], "evaluations": [[overrides], …]}'``"""
    register_resolvers()
    quiet()
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        training = compose("train", [*job["train"], "resume=auto"])
        evaluations = [compose("evaluate", [*overrides, f"run={folder}"]) for overrides in job["evaluations"]]
    if read(folder / RECORD).get("state") != "finished":
        train(training, folder)
    for evaluation in evaluations:
        evaluate(evaluation)


def forked(order: str, log: str) -> None:
    """:func:`main` with one thread, in a process that was forked with all imports made; what it prints goes to ``log``.

    Args:
        order: what :func:`main` takes on the command line.
    """
    with open(log, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # where a run takes several devices, Lightning starts the other processes by this command
    sys.modules["__main__"], sys.argv = sys.modules[__name__], [__file__, order]
    with clear_errors():
        main()


if __name__ == "__main__":
    with clear_errors():
        main()
