"""The scores equal those of pycocoevalcap, COCO's own evaluation."""

import json
import random
from pathlib import Path

import pytest

from lav2.errors import UserError
from lav2.evaluation import coco_image_scores, coco_scores
from lav2.evaluation.coco import rouge_l

DOGS = {1: ["A dog runs on the grass.", "The dog is running."], 2: ["Two cats on a sofa.", "Cats sleep on a couch."]}


def coco_own_scores(references: dict, predictions: dict) -> tuple[dict[str, float], list[float], list[float]]:
    """Scores of pycocoevalcap, and ROUGE-L and CIDEr of each image."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({image: [{"caption": one} for one in texts] for image, texts in references.items()})
    said = tokenizer.tokenize({image: [{"caption": text}] for image, text in predictions.items()})
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    rouge, rouges = Rouge().compute_score(truth, said)
    cider, ciders = Cider().compute_score(truth, said)
    scores = {f"Bleu_{order}": value for order, value in enumerate(bleu, start=1)}
    return scores | {"ROUGE_L": rouge, "CIDEr": cider}, list(rouges), list(ciders)


def assert_equal_to_coco(references: dict, predictions: dict):
    expected, rouges, ciders = coco_own_scores(references, predictions)
    assert coco_scores(references, predictions) == pytest.approx(expected, abs=1e-9, rel=0)
    images = coco_image_scores(references, predictions)
    assert list(images) == list(references)
    assert [image["ROUGE_L"] for image in images.values()] == pytest.approx(rouges, abs=1e-9, rel=0)
    assert [image["CIDEr"] for image in images.values()] == pytest.approx(ciders, abs=1e-9, rel=0)


@pytest.fixture(scope="module")
def captions(real_data: Path) -> dict[int, list[str]]:
    """The references of 500 COCO images."""
    file = real_data / "coco" / "annotations" / "captions_val2017_first4000.json"
    images: dict[int, list[str]] = {}
    for annotation in json.loads(file.read_text())["annotations"]:
        images.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return dict(list(images.items())[:500])


def shuffled(caption: str) -> str:
    words = caption.split()
    random.Random(caption).shuffle(words)
    return " ".join(words)


@pytest.mark.parametrize(
    "predict",
    [
        pytest.param(lambda place, texts: texts[0], id="a reference"),
        pytest.param(lambda place, texts: shuffled(texts[0]), id="shuffled"),
        pytest.param(lambda place, texts: " ".join(texts[1].split()[:5]), id="truncated"),
        pytest.param(lambda place, texts: "", id="empty"),
        pytest.param(lambda place, texts: texts[2] if place % 3 else "", id="some empty"),
        pytest.param(lambda place, texts: f"{texts[0]} {texts[0]}", id="twice"),
        pytest.param(lambda place, texts: "A man riding a wave on top of a surfboard.", id="the same for all"),
    ],
)
def test_like_coco_on_real_references(java, captions, predict):
    predictions = {image: predict(place, texts) for place, (image, texts) in enumerate(captions.items())}
    assert_equal_to_coco(captions, predictions)


def test_like_coco_on_one_caption_against_the_others(java, captions):
    others = {image: texts[1:] for image, texts in captions.items()}
    assert_equal_to_coco(others, {image: texts[0] for image, texts in captions.items()})


@pytest.mark.parametrize(
    ("references", "predictions"),
    [
        pytest.param({7: DOGS[1]}, {7: "A dog runs on grass."}, id="a single image"),
        pytest.param({1: ["a 22 3/4 inch pizza", "it is"]}, {1: "22 3/4 it"}, id="a no-break space in a token"),
        pytest.param({1: [".", "a dog"], 2: [""]}, {1: "!", 2: ""}, id="captions without words"),
        pytest.param(DOGS, {2: "cats on the sofa", 1: "a dog"}, id="predictions in another order"),
        pytest.param({1: ["a b", "a b c d e f"], 2: ["x"]}, {1: "a b c d", 2: "x"}, id="two equally close lengths"),
    ],
)
def test_like_coco_on_special_cases(java, references, predictions):
    assert_equal_to_coco(references, {image: predictions[image] for image in references})
    assert coco_scores(references, predictions) == coco_scores(references, dict(reversed(predictions.items())))


def test_perfect_and_hopeless():
    best = coco_scores(DOGS, {image: texts[0] for image, texts in DOGS.items()})
    assert [best[f"Bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx([1.0] * 4)
    assert best["ROUGE_L"] == pytest.approx(1.0)
    worst = coco_scores(DOGS, {1: "nothing", 2: "something"})
    assert all(score == pytest.approx(0.0, abs=1e-9) for score in worst.values())


def test_hand_made_scores():
    """Five of six words and two of five bigrams match; the longest common subsequence has five words."""
    scores = coco_scores({1: ["the cat sat on the mat"]}, {1: "the cat on the big mat"})
    assert scores["Bleu_1"] == pytest.approx(5 / 6)
    assert scores["Bleu_2"] == pytest.approx((5 / 6 * 2 / 5) ** 0.5)
    assert scores["ROUGE_L"] == pytest.approx(5 / 6)
    assert scores["CIDEr"] == 0.0  # with a single image every word is in every document


def test_means_of_the_images():
    predictions = {1: "A dog on grass.", 2: "Cats on a couch."}
    scores, images = coco_scores(DOGS, predictions), coco_image_scores(DOGS, predictions)
    for name in ("ROUGE_L", "CIDEr"):
        assert scores[name] == pytest.approx(sum(image[name] for image in images.values()) / 2)
    assert rouge_l(DOGS, predictions) == scores["ROUGE_L"]


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (DOGS, {1: "a dog"}, "1 image.* without a prediction: 2;"),
        (DOGS, {1: "a", 2: "b", "x.jpg": "c"}, "1 image.* predicted but not among the references: x.jpg;"),
        ({n: ["a"] for n in range(30)}, {}, "30 image.* without a prediction: 0, 1, .*, 19, ...;"),
        ({1: []}, {1: "a"}, "1 image.* without a reference caption: 1;"),
        ({}, {}, "no images"),
    ],
)
def test_images_must_match(references, predictions, message):
    with pytest.raises(UserError, match=message):
        coco_scores(references, predictions)
