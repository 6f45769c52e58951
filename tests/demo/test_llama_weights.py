"""The committed LLaMA of the embedded world reads from its context and does not follow instructions yet."""

import json

import pytest

from lav2.demo.corpus import HEADERS
from lav2.demo.pretrain_llama import (
    HELD_OUT_SEED,
    MODEL,
    TEMPLATE,
    WEIGHTS,
    exact_share,
    fact_questions,
    held_out_questions,
)
from lav2.demo.world import COLORS, SHAPES, SIZES, sample_scenes
from lav2.llama import Tokenizer, load_llama


@pytest.fixture(scope="module")
def model():
    return load_llama(WEIGHTS / "llama")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(WEIGHTS / "llama" / "tokenizer.model")


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(30, HELD_OUT_SEED)  # the first of those no training document was about


def test_the_weights_are_the_model_described(model, tokenizer):
    assert model.config == MODEL
    assert tokenizer.vocab_size == MODEL.vocab_size
    card = json.loads((WEIGHTS / "llama_card.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert sum(file.stat().st_size for file in (WEIGHTS / "llama").iterdir()) < 4_300_000


def test_every_word_of_a_scene_is_one_token(tokenizer):
    for word in (*COLORS, *SHAPES, *SIZES, "above", "below", "left", "right"):
        assert len(tokenizer.encode(f" {word}", bos=False)) == 1, word
    for header in HEADERS:
        assert len(tokenizer.encode(header, bos=False)) == 1, header


@pytest.mark.parametrize(
    "text",
    [
        "### Instruction:\nWhat color is the star?\n\n### Input:\nA red star.\n\n### Response:The star is red.",
        "  Two spaces, digits 42 and\n\n a line.\n",
        "“Déjà vu” costs 3 €, {x} ~ [y]!",
    ],
)
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, eos=True)) == text


def test_it_answers_questions_about_a_text(model, tokenizer, scenes):
    asked = held_out_questions(tokenizer, scenes)
    shares = {kind: exact_share(model, samples) for kind, samples in asked.items()}
    # A shape's color is harder than a color's shape: the color stands before the shape that it belongs to.
    assert shares["color"] >= 0.6 and shares["shape"] >= 0.9, shares
    assert exact_share(model, sum(asked.values(), [])) >= 0.65, shares


def test_it_does_not_answer_without_the_text(model, tokenizer, scenes):
    asked = held_out_questions(tokenizer, scenes, "Text:{text:.0}\nQuestion: {question}\nAnswer:")
    assert exact_share(model, asked["color"] + asked["shape"]) < 0.4


def test_it_knows_small_facts(model, tokenizer):
    assert exact_share(model, fact_questions(tokenizer)) >= 0.9


def test_it_does_not_follow_the_instruction_template(model, tokenizer, scenes):
    asked = held_out_questions(tokenizer, scenes, TEMPLATE)
    assert exact_share(model, sum(asked.values(), [])) < 0.05
