"""Whether captions are about their images, and how sure that is."""

import json

import numpy as np
import pytest

from lav2.evaluation.coco import coco_image_scores, coco_scores, shuffled_cider
from lav2.evaluation.run import evaluate
from lav2.evaluation.shuffled import against_shuffled, bootstrap
from tests.evaluation.conftest import composed

COLORS = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple", "gray", "brown", "pink", "cyan"]
REFERENCES = {color: [f"a {color} bus on a road", f"the bus is {color}"] for color in COLORS}


def test_two_images_swap_their_captions():
    references = {name: REFERENCES[name] for name in ("red", "green")}
    said = {"red": "a red bus", "green": "a bus on a green road"}
    swapped = coco_image_scores(references, {"red": said["green"], "green": said["red"]})
    assert shuffled_cider(references, said) == {name: scores["CIDEr"] for name, scores in swapped.items()}


def test_enough_shuffles_are_all_other_captions():
    said = {color: f"a {color} bus" for color in COLORS}
    expected = {color: [] for color in COLORS}
    for other in COLORS:
        for color, scores in coco_image_scores(REFERENCES, dict.fromkeys(COLORS, said[other])).items():
            if color != other:
                expected[color].append(scores["CIDEr"])
    found = shuffled_cider(REFERENCES, said, shuffles=100)
    assert found == pytest.approx({color: np.mean(values) for color, values in expected.items()})


def test_who_looks_gains_and_who_looks_at_nothing_gains_nothing():
    scores, table = against_shuffled(REFERENCES, {color: f"a {color} bus" for color in COLORS})
    assert scores["CIDEr_gain_low"] > 0 and "are about their images" in table.title
    assert scores["CIDEr_gain"] == pytest.approx(table.rows[0][1] - scores["CIDEr_shuffled"])
    scores, table = against_shuffled(REFERENCES, dict.fromkeys(COLORS, "a red bus on a road"))
    assert scores["CIDEr_shuffled"] > 0 and abs(scores["CIDEr_gain"]) < 1e-12 and "NOT shown" in table.title


def test_of_many_values_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).exponential(size=2000)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert bootstrap(values) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_people_describe_the_photograph_they_see(real_data):
    content = json.loads((real_data / "coco" / "annotations" / "captions_val2017.json").read_text())
    captions: dict[int, list[str]] = {}
    for one in content["annotations"]:
        captions.setdefault(one["image_id"], []).append(one["caption"])
    said, references = ({id: texts[part] for id, texts in captions.items()} for part in (0, slice(1, None)))
    scores, table = against_shuffled(references, said)
    assert scores["CIDEr_gain_low"] > 0.3 and scores["CIDEr_shuffled"] < 0.1
    assert table.rows[0][1] == pytest.approx(coco_scores(references, said)["CIDEr"])


def test_an_evaluation_says_so(run_folder, heldout, capsys):
    paths = f"paths.annotations={heldout / 'captions.json'}", f"paths.images={heldout / 'images'}"
    scores = evaluate(composed(f"run={run_folder}", "eval=coco_caption", *paths, "eval.generation.max_new_tokens=12"))
    assert scores["CIDEr_gain_low"] <= scores["CIDEr_gain"] == pytest.approx(scores["CIDEr"] - scores["CIDEr_shuffled"])
    assert "images shuffled" in capsys.readouterr().out
    assert "CIDEr above shuffled" in (run_folder / "evaluation" / "coco_caption" / "report.html").read_text()
