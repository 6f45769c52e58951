"""`make demo` as a user sees it: what it promises is what it leaves. Takes as long as the demo: about five minutes."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest

from lav2.demo import __main__ as demo

NAMES = {"config.yaml", "metrics.csv", "checkpoints", "adapter", "evaluation", "report.html"}
NAMES |= {"parameters.json", "data_problems.json", "run.json"}


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
    assert {path.name for path in folder.iterdir()} == NAMES
    scores = json.loads((folder / "evaluation" / "demo" / "scores.json").read_text())
    assert scores["scenes"] >= 200 and scores["questions"] == 100
    assert scores["color_shape_f1"] >= 0.90 and scores["color_shape_f1_shuffled"] <= 0.15
    assert scores["question_accuracy"] >= 0.35
    assert scores["question_accuracy"] >= 2 * scores["question_accuracy_blind"]


def test_a_second_demo_loses_nothing(tmp_path, monkeypatch, capsys):
    """Neither the first one, with what was scored of it, nor the user's own runs and sweeps beside it."""
    folder, others = tmp_path / "outputs" / "demo", ("sweep_now/0/config.yaml", "now/run.json", "report/runs.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo"])
    monkeypatch.setattr(demo, "evaluate", lambda cfg: defaultdict(float))

    def train(cfg, run):
        assert cfg.resume is None
        for name in ("adapter/weights", "checkpoints/step=3.ckpt", "evaluation/demo/report.html", "config.yaml"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(turn)

    monkeypatch.setattr(demo, "train", train)
    turn = "first"
    demo.main()
    for name in (*others, "evaluation/experts/scores.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
    turn = "second"
    demo.main()
    assert all((folder / name).read_text() == "mine" for name in others)
    assert (folder / "report.html").read_text() == (folder / "adapter" / "weights").read_text() == "second"
    assert not (folder / "evaluation" / "experts").exists()  # it was of the first
    beside = {name.split("/")[0] for name in others}
    (aside,) = (path for path in folder.iterdir() if path.name not in NAMES | beside)
    assert str(aside.relative_to(tmp_path)) in capsys.readouterr().out
    assert (aside / "report.html").read_text() == (aside / "adapter" / "weights").read_text() == "first"
    assert (aside / "evaluation" / "experts" / "scores.json").read_text() == "mine"
