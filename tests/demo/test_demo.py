"""`make demo` as a user sees it: what it promises is what it leaves. Takes as long as the demo: about five minutes."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_sees(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lav2.demo"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "demo"
    names = {"config.yaml", "metrics.csv", "checkpoints", "adapter", "evaluation", "report.html"}
    names |= {"parameters.json", "data_problems.json", "run.json"}
    assert {path.name for path in folder.iterdir()} == names
    scores = json.loads((folder / "evaluation" / "demo" / "scores.json").read_text())
    assert scores["scenes"] >= 200 and scores["questions"] == 100
    assert scores["color_shape_f1"] >= 0.90 and scores["color_shape_f1_shuffled"] <= 0.15
    assert scores["question_accuracy"] >= 0.35
    assert scores["question_accuracy"] >= 2 * scores["question_accuracy_blind"]
