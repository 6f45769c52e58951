"""The whole path on real photographs, captions and instructions: `train.py`, then `evaluate.py`, with the tiny models.

So small a model learns little from so little; that real input goes all the way, and bad input is named, is the point.
"""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir

from lav2 import load
from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError
from lav2.evaluation.run import evaluate
from lav2.training.run import train


def composed(name, *overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="module")
def photographs(real_data, tmp_path_factory):
    """COCO's training photographs with one of them broken and one caption empty: (annotations, images)."""
    folder = tmp_path_factory.mktemp("coco")
    images = shutil.copytree(real_data / "coco" / "train2017", folder / "images")
    content = json.loads((real_data / "coco" / "annotations" / "captions_train2017.json").read_text())
    broken = images / content["images"][0]["file_name"]
    broken.write_bytes(broken.read_bytes()[:2000])
    other = next(a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"])
    other["caption"] = " "
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json", images


@pytest.fixture(scope="module")
def settings(photographs, real_data):
    annotations, images = photographs
    return [
        "experiment=coco_mini",
        f"paths.annotations={annotations}",
        f"paths.images={images}",
        f"paths.instructions={real_data / 'instructions' / 'alpaca_gpt4_700.json'}",
        f"data.cache_dir={annotations.parent / 'features'}",
        "trainer.max_steps=6",
    ]


@pytest.fixture(scope="module")
def run_folder(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(composed("train", *settings), folder)
    return folder


def test_bad_samples_are_named_and_counted(settings, photographs, tmp_path, capsys):
    train(composed("train", *settings, "trainer.max_steps=1"), tmp_path)
    said = " ".join(capsys.readouterr().out.split()).replace(" ", "")
    assert "skipped6of130captions" in said and "1emptycaption" in said and "1brokenimage" in said
    record = json.loads((tmp_path / "data_problems.json").read_text())
    (broken,) = record["caption"]["problems"]["broken image"]
    assert broken.startswith(str(photographs[1])) and len(record["caption"]["problems"]["empty caption"]) == 1
    (places,) = record["instruction"]["problems"].values()  # prompts longer than max_length
    assert len(places) == record["instruction"]["skipped"] > 3  # all of them, not the few that are printed
    assert len(record["instruction"]["truncated_places"]) == record["instruction"]["truncated"] > 0


def test_or_stop_at_the_first_when_asked(settings, tmp_path):
    with pytest.raises(UserError, match="empty caption"):
        train(composed("train", *settings, "data.on_error=raise"), tmp_path)


def test_the_loss_on_real_sentences_falls(run_folder):
    rows = (run_folder / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    for task in ("caption", "instruction"):
        losses = [float(row.split(",")[columns.index(f"train/{task}_loss")]) for row in rows[1:]]
        assert losses[-1] < losses[0]


def test_captions_of_photographs_are_scored(run_folder, real_data):
    scores = evaluate(
        composed(
            "evaluate",
            f"run={run_folder}",
            "eval=coco_caption",
            f"paths.annotations={real_data / 'coco' / 'annotations' / 'captions_val2017.json'}",
            f"paths.images={real_data / 'coco' / 'val2017'}",
        )
    )
    assert {"Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"} <= scores.keys()
    assert scores["split"] == "captions_val2017" and scores["images"] == 43
    folder = run_folder / "evaluation" / "coco_caption"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 43 and all(len(line["references"]) == 5 for line in lines)
    assert json.loads((folder / "settings.json").read_text())["generation"]["max_new_tokens"] == 40
    assert "data:image" in (folder / "report.html").read_text()


def test_answers_to_instructions_are_scored(run_folder, real_data):
    scores = evaluate(
        composed(
            "evaluate",
            f"run={run_folder}",
            "eval=instructions",
            "eval.limit=20",
            "eval.generation.max_new_tokens=8",
            f"paths.instructions={real_data / 'instructions' / 'alpaca_gpt4_700.json'}",
        )
    )
    assert scores["perplexity"] > 1 and scores["instructions"] + scores["skipped"] == 20


def test_answers_do_not_depend_on_the_batch(run_folder, real_data):
    """Invariant 5, end to end: photographs and questions together, and one by one."""
    model = load(run_folder)
    images = sorted((real_data / "coco" / "val2017").glob("*.jpg"))[:3]
    questions = ["What is this?", "Describe the image in a few words.", "Who?"]
    together = model.generate(questions, images, max_new_tokens=12)
    alone = [model.generate([q], [i], max_new_tokens=12)[0] for q, i in zip(questions, images, strict=True)]
    mixed = model.generate(questions, [images[0], None, images[2]], max_new_tokens=12)
    assert together == alone and [mixed[0], mixed[2]] == [together[0], together[2]]
