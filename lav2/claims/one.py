"""One run of the sweep in a process of its own: train an arm and measure it, or go on where it stopped."""

import json
import sys
from pathlib import Path

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


if __name__ == "__main__":
    with clear_errors():
        main()
