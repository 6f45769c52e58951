"""Texts of the embedded world say what its scenes hold, nothing else, and the same in every place."""

import random
import re

import pytest

from lav2.demo.language import captions, description, details, instructions, parse, questions, statements
from lav2.demo.world import Item, Scene, Sign, relation, sample_scenes

KINDS = {"color", "shape", "size", "where", "count", "there", "sign"}
SIGN_SCENE = Scene((Item("circle", "red", "small", 0, 0), Item("star", "orange", "large", 1, 0)), Sign("STOP", 2, 1))
BOTH = {("red", "circle"), ("blue", "star")}


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(400, seed=7)


def pairs(scene):
    return {(item.color, item.shape) for item in scene.items}


def places(scene):
    if len(scene.items) == 1:
        return set()
    a, b = scene.items
    return {(a.shape, relation(a, b), b.shape), (b.shape, relation(b, a), a.shape)}


def test_captions_say_exactly_what_the_scene_holds(scenes):
    rng = random.Random(0)
    stated = 0
    for scene in scenes:
        texts = captions(scene, rng)
        assert len(set(texts)) == 5
        for text in texts:
            found, where = parse(text)
            assert found == pairs(scene), text
            assert set(where) <= places(scene), text
            assert ("sign" in text) == (scene.sign is not None), text
            for size, shape in re.findall(r"(small|large) \w+ (\w+)", text):
                assert size == next(item.size for item in scene.items if item.shape == shape)
            stated += bool(where)
    assert stated > 500  # most captions of a pair tell where its items lie, and parse() reads it


def test_captions_never_tell_what_a_sign_says():
    rng = random.Random(0)
    texts = [text for _ in range(50) for text in captions(SIGN_SCENE, rng) + details(SIGN_SCENE, rng)]
    assert not any("STOP" in text for text in texts)
    assert any("There is a sign." in text for text in texts)


def test_details_are_made_of_answers(scenes):
    rng = random.Random(0)
    for scene in scenes:
        answers = {answer.removeprefix("Yes, ") for _ in range(40) for _, _, answer in questions(scene, rng)}
        answers = {answer[0].upper() + answer[1:] for answer in answers}
        assert set(statements(scene)) <= answers
        texts = details(scene, rng)
        assert len(texts) >= 2
        for text in texts:
            sentences = {sentence.strip() for sentence in re.findall(r"[^.]+\.", text)}
            assert 1 <= len(sentences) <= 4
            assert sentences <= set(statements(scene))
            found, where = parse(text)
            assert found <= pairs(scene) and set(where) <= places(scene)


def test_details_together_cover_the_scene(scenes):
    rng = random.Random(0)
    for scene in scenes[:50]:
        text = " ".join(" ".join(details(scene, rng)) for _ in range(30))
        assert parse(text)[0] == pairs(scene)
        assert all(statement in text for statement in statements(scene))


def test_a_description_names_every_item_and_reads_the_sign(scenes):
    rng = random.Random(0)
    for scene in scenes:
        text = description(scene, rng)
        assert parse(text)[0] == pairs(scene), text
        assert scene.sign is None or scene.sign.text in text


def test_answers_are_true_and_every_kind_is_asked(scenes):
    rng = random.Random(0)
    kinds = set()
    for scene in scenes:
        for kind, question, answer in questions(scene, rng):
            kinds.add(kind)
            found, where = parse(answer)
            assert found <= pairs(scene) and set(where) <= places(scene)
            if kind == "there":
                name = re.fullmatch(r"Is there an? (.*)\?", question).group(1)
                held = {f"{item.color} {item.shape}" for item in scene.items} | {item.shape for item in scene.items}
                is_there = name in held or (name == "sign" and scene.sign is not None)
                assert answer.startswith("Yes, there is a") == is_there
                assert answer.startswith("No, there is no ") != is_there
    assert kinds == KINDS


def test_a_description_is_asked_only_what_it_tells():
    rng = random.Random(0)
    asked = {kind for _ in range(20) for kind, _, _ in questions(SIGN_SCENE, rng, "A red circle and an orange star.")}
    assert asked == KINDS - {"size", "where", "sign"}
    text = "A red circle above an orange star. The star is large. The sign says STOP."
    asked = questions(SIGN_SCENE, rng, text)
    assert [answer for kind, _, answer in asked if kind == "size"] == ["The star is large."]
    assert "The star is below the circle." in [answer for kind, _, answer in asked if kind == "where"]
    assert [answer for kind, _, answer in asked if kind == "sign"] == ["The sign says STOP."]


def test_instructions_are_language_only_complete_and_reproducible(scenes):
    samples = instructions(scenes, 2000, seed=3)
    assert samples == instructions(scenes, 2000, seed=3) != instructions(scenes, 2000, seed=4)
    assert len(samples) == 2000
    for sample in samples:
        assert set(sample) == {"instruction", "input", "output"}
        assert sample["instruction"] and sample["output"]
        assert not re.search("picture|image|photo", " ".join(sample.values()).lower())
    assert 0.05 < sum(sample["input"] == "" for sample in samples) / 2000 < 0.25


def test_instructions_about_a_text_are_answerable_from_it(scenes):
    for sample in instructions(scenes, 2000, seed=3):
        if sample["input"]:
            told, where = parse(sample["input"])
            said, said_where = parse(sample["output"])
            assert said <= told, sample
            assert not said_where or where, sample
            assert all(word in sample["input"] for word in re.findall("[A-Z]{2,}|[0-9]+", sample["output"])), sample


@pytest.mark.parametrize(
    ("text", "found", "where"),
    [
        ("An orange star.", {("orange", "star")}, []),
        ("We see a small red circle with a blue star below it.", BOTH, [("star", "below", "circle")]),
        ("A red circle is to the left of a blue star.", BOTH, [("circle", "to the left of", "star")]),
        ("The circle is red. The blue shape is a star.", BOTH, []),
        ("The star is below the circle. There are two shapes.", set(), [("star", "below", "circle")]),
        ("No, there is no red circle.", set(), []),
        ("Yes, there is a red circle.", {("red", "circle")}, []),
        ("a red circle above a blue", {("red", "circle")}, []),
        ("", set(), []),
    ],
)
def test_parse(text, found, where):
    assert parse(text) == (found, where)
