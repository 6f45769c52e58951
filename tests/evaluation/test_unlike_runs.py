"""Runs side by side: what is not alike has no mean."""

import json

from lav2.evaluation.runs import find_runs, group_runs, unlike
from lav2.report import write_report


def run(folder, seed, cider, split="test", dtype="float32", losses=(2.0, 1.0)):
    evaluation = folder / str(seed) / "evaluation" / "coco_caption"
    evaluation.mkdir(parents=True)
    (folder / str(seed) / "config.yaml").write_text(f"seed: {seed}\n")
    (folder / str(seed) / "run.json").write_text(json.dumps({"state": "finished"}))
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    (folder / str(seed) / "metrics.csv").write_text("step,train/caption_loss\n" + rows)
    (evaluation / "scores.json").write_text(json.dumps({"CIDEr": cider, "split": split}))
    settings = {"eval": {"images": f"/photographs/{seed}"}, "model": {"adapter": f"hash of {seed}", "dtype": dtype}}
    (evaluation / "settings.json").write_text(json.dumps(settings))


def test_scores_of_other_splits_and_data_types_are_not_averaged(tmp_path, capsys):
    """Another adapter and another folder are what runs differ in anyway."""
    run(tmp_path / "alike", 0, 1.0)
    run(tmp_path / "alike", 1, 2.0)
    (group,) = group_runs(find_runs([tmp_path / "alike"]))
    assert group.outcomes["coco_caption/CIDEr"].mean == 1.5
    run(tmp_path / "mixed", 0, 1.0)
    run(tmp_path / "mixed", 1, 2.0, split="val", dtype="bfloat16")
    runs = find_runs([tmp_path / "mixed"])
    assert unlike(runs) == {"coco_caption": ["split", "dtype"]}
    (group,) = write_report([tmp_path / "mixed"], tmp_path / "report")
    assert "coco_caption/CIDEr" not in group.outcomes and "train/caption_loss" in group.outcomes
    printed = " ".join(capsys.readouterr().out.split())
    assert "coco_caption was not made alike in all of them (they differ in split, dtype)" in printed


def test_a_loss_that_is_no_number_does_not_end_the_report(tmp_path):
    """With on_nan=skip a step that was left out may be the last one logged."""
    run(tmp_path, 0, float("nan"), losses=(2.0, float("nan")))
    run(tmp_path, 1, 1.0)
    (group,) = write_report([tmp_path], tmp_path / "report")
    assert group.outcomes["train/caption_loss"].values == [2.0, 1.0]
    assert group.outcomes["coco_caption/CIDEr"].std is None and (tmp_path / "report" / "summary.csv").is_file()
