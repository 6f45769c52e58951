"""Many run folders in one table: grouped by what was varied, seeds as spread, failures named and left out of means."""

import csv
import json
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from lav2 import report
from lav2.evaluation.runs import find_runs, group_runs, read_run, varied

CIDER = {(1, 0): 0.5, (1, 1): 0.9, (2, 0): 1.0, (2, 1): 1.6, (10, 0): 1.2, (10, 1): None}


def write_run(folder, seed, settings, losses=(), scores=None, **record):
    folder.mkdir(parents=True)
    OmegaConf.save({"name": folder.name, "seed": seed, "tasks": ["caption"], **settings}, folder / "config.yaml")
    if losses:
        rows = [f"{step},{loss},{loss / 2 if step == len(losses) - 1 else ''}" for step, loss in enumerate(losses)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/caption_loss,val/caption_loss", *rows]))
    if scores is not None:
        (folder / "evaluation" / "coco").mkdir(parents=True)
        (folder / "evaluation" / "coco" / "scores.json").write_text(json.dumps(scores))
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def sweep(tmp_path):
    """Three prompt lengths with two seeds each; the last job failed."""
    for job, ((length, seed), cider) in enumerate(CIDER.items()):
        failed = cider is None
        write_run(
            tmp_path / "sweep" / str(job),
            seed,
            {"adapter": {"prompt_length": length, "prompt_layers": 3}},
            np.linspace(3.0, 1.0 + seed, 20).tolist(),
            None if failed else {"CIDEr": cider, "split": "val", "by_length": {"short": cider / 2}},
            **({"state": "failed", "reason": "the caption loss became nan"} if failed else {"state": "finished"}),
            seconds=10.0 + job,
            peak_memory_mb=700,
        )
    return tmp_path / "sweep"


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_seeds_are_joined_and_failures_left_out(sweep):
    runs = find_runs([sweep])
    assert varied(runs) == ["adapter.prompt_length"]  # neither the seed nor the name
    groups = group_runs(runs)
    assert [group.settings["adapter.prompt_length"] for group in groups] == [1, 2, 10]  # by size, not by the alphabet
    for group, values in zip(groups, ([0.5, 0.9], [1.0, 1.6], [1.2]), strict=True):
        spread = group.outcomes["coco/CIDEr"]
        assert spread.mean == pytest.approx(np.mean(values))
        assert spread.std == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
        assert group.outcomes["coco/by_length.short"].mean == pytest.approx(np.mean(values) / 2)
    assert [len(group.counted) for group in groups] == [2, 2, 1] and [len(group.runs) for group in groups] == [2, 2, 2]


def test_losses_are_of_the_end(sweep):
    outcomes = read_run(sweep / "1").outcomes  # its losses go from 3 to 2 in 20 steps
    assert outcomes["val/caption_loss"] == 1.0
    assert outcomes["train/caption_loss"] == pytest.approx(np.mean(np.linspace(3, 2, 20)[-2:]))


def test_runs_can_be_grouped_by_chosen_settings(sweep):
    (group,) = group_runs(find_runs([sweep]), by=["adapter.prompt_layers"])
    assert len(group.runs) == 6 and len(group.outcomes["coco/CIDEr"].values) == 5
    assert {run.seed for run in group.runs} == {0, 1}


def test_the_report_holds_every_run(sweep, capsys):
    report.main([str(sweep)])
    made = sweep / "report"
    runs, summary = lines(made / "runs.csv"), lines(made / "summary.csv")
    assert [(run["state"], run["reason"]) for run in runs[-2:]] == [
        ("finished", ""),
        ("failed", "the caption loss became nan"),
    ]
    assert [(row["runs"], row["not finished"]) for row in summary] == [("2", "0"), ("2", "0"), ("1", "1")]
    assert float(summary[1]["coco/CIDEr std"]) == pytest.approx(np.std([1.0, 1.6], ddof=1))
    page = (made / "report.html").read_text()
    assert "1.30 ± 0.42" in page and "the caption loss became nan" in page
    assert page.count("<svg") == 4  # what differs: a loss, CIDEr, its part and the seconds; not the memory
    with Image.open(made / "report.png") as picture:
        assert min(picture.size) > 500
    printed = capsys.readouterr().out
    assert "failed: " in printed and "1 of 2" in printed


def test_no_name_is_broken_in_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    """What does not fit stands in a further table; what is the same everywhere is said once."""
    monkeypatch.setenv("COLUMNS", "70")
    names = [f"a_rather_long_score_{place}" for place in range(4)]
    for job, rate in enumerate((0.1, 0.2)):
        scores = {"scenes": 150, **dict.fromkeys(names, rate)}
        write_run(tmp_path / str(job), 0, {"optim": {"caption": {"lr": rate}}}, scores=scores, state="finished")
    report.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(name in line for line in lines) for name in names)
    assert sum("┃ lr " in line for line in lines) == 2  # the setting's own name, in two tables
    assert "coco, the same everywhere: scenes 150" in lines
    assert max(len(line) for line in lines if line[:1] in "┏┃│└") <= 70


def test_without_matplotlib_there_is_no_picture(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    report.main([str(sweep)])
    assert {path.name for path in (sweep / "report").iterdir()} == {"runs.csv", "summary.csv", "report.html"}
    assert 'pip install -e ".[report]"' in capsys.readouterr().out


def test_a_damaged_run_is_named_and_the_others_are_told_of(sweep, capsys):
    (sweep / "3" / "run.json").write_text('{"state": ')
    report.main([str(sweep)])
    assert f"unreadable: {sweep / '3'}: {sweep / '3' / 'run.json'} cannot be read" in capsys.readouterr().out
    assert lines(sweep / "report" / "summary.csv")[1]["coco/CIDEr mean"] == "1.0"


def test_a_mistake_is_one_line(sweep, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, said in [
        ([str(tmp_path / "nowhere")], "nowhere: no such folder"),
        ([str(tmp_path / "empty")], "no run there"),
        ([str(sweep / "0"), "--show", "coco/SPICE"], "--show coco/SPICE: no run has it"),
    ]:
        with pytest.raises(SystemExit) as left:
            report.main(arguments)
        error = capsys.readouterr().err
        assert left.value.code == 2 and said in error and error.count("\n") == 1


def test_several_settings_are_lines_of_one_chart(tmp_path):
    for job, (rate, task) in enumerate([(0.1, "a"), (0.1, "b"), (0.2, "a"), (0.2, "b"), (0.3, "a")]):
        write_run(tmp_path / str(job), 0, {"rate": rate, "data": {"mode": task}}, [2.0, rate], state="finished")
    (chart, *_) = report.charts(group_runs(find_runs([tmp_path])), ["val/caption_loss"])
    assert chart.setting == "rate" and chart.values == ["0.1", "0.2", "0.3"]
    assert {name: sorted(line) for name, line in chart.lines.items()} == {"mode a": [0, 1, 2], "mode b": [0, 1]}
