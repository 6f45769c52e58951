"""Streamed text with LLaMA's own tokenizer, whose bytes stand for what it has no piece for."""

import json
import random

import pytest

from lav2.llama import Tokenizer
from lav2.llama.generation import pieces
from lav2.llama.text import BROKEN, AnswerText

TEXTS = [
    "A llama 🦙 and a family 👨‍👩‍👧‍👦, a flag 🇵🇪, a thumb 👍🏽.",
    "𒀀𒁀 cuneiform, ꙮ many eyes, 𝔉𝔯𝔞𝔨𝔱𝔲𝔯; e\u0301 combined",
    "日本語と한국어 и русский, العربية, עברית, ไทย",
    "  two  spaces,\ttab\n\n\n    indented\n\tcode()  \n end",
    "## Heading\r\n* item\u00a0with\u2003odd spaces",
    "🦙",
    "",
]


@pytest.fixture
def tokenizer(real_data):
    return Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model")


def streamed(text, ids):
    return list(pieces(([ids[:n]] for n in range(1, len(ids) + 1)), text))


def check(tokenizer, ids, stop=()):
    """The pieces make up the whole, and none breaks a character. Returns the pieces."""
    text = AnswerText(tokenizer.decode, stop)
    parts = streamed(text, ids)
    assert "".join(parts) == text.whole(ids)
    assert all(part and BROKEN not in part for part in parts)
    return parts


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(tokenizer, text):
    assert "".join(check(tokenizer, tokenizer.encode(text, bos=False))) == text.strip()


def test_real_answers_come_word_by_word(tokenizer, real_data):
    samples = json.loads((real_data / "instructions" / "alpaca_gpt4_700.json").read_text())[:60]
    for output in (sample["output"] for sample in samples):
        ids = tokenizer.encode(output, bos=False)
        assert "".join(parts := check(tokenizer, ids)) == output.strip()
        assert len(parts) > len(output.split()) * 0.9


def test_any_tokens_can_be_streamed(tokenizer):
    """Also what no text gives: bytes at random, control tokens and lone spaces among pieces."""
    draw = random.Random(0)
    kinds = [range(3, 259), range(0, 3), [29871, 259, 13], range(259, tokenizer.vocab_size)]
    for _ in range(300):
        ids = [draw.choice(draw.choices(kinds, (6, 1, 2, 4))[0]) for _ in range(draw.randrange(1, 30))]
        check(tokenizer, ids)


def test_half_a_character_is_left_out(tokenizer):
    ids = tokenizer.encode("Look: 🦙", bos=False)
    assert AnswerText(tokenizer.decode).whole(ids[:-1]) == "Look:"
    assert BROKEN in tokenizer.decode(ids[:-1])


def test_a_stop_text_is_found_wherever_tokens_divide_it(tokenizer):
    draw = random.Random(0)
    for text in TEXTS[:5]:
        ids = tokenizer.encode(text, bos=False)
        for _ in range(40):
            start = draw.randrange(len(text))
            stop = text[start : start + draw.randrange(1, 8)]
            answer = AnswerText(tokenizer.decode, [stop, "never there"])
            length = next(n for n in range(1, len(ids) + 1) if answer.ended(ids[:n]))
            assert stop in tokenizer.decode(ids[:length]) and stop not in answer.readable(ids[: length - 1])
            assert "".join(check(tokenizer, ids[:length], answer.stop)) == text[: text.index(stop)].strip()


def test_what_begins_like_a_stop_text_waits_only_until_it_differs(tokenizer):
    text = AnswerText(tokenizer.decode, ["### Instruction"])
    ids = tokenizer.encode("A # B ## C ### Response", bos=False)
    settled = [text.settled(ids[:n]) for n in range(1, len(ids) + 1)]
    assert not any(part.endswith("#") for part in settled)
    assert settled[-1] == "A # B ## C ### Response"


def test_a_long_answer_ends_at_its_stop_text_too(tokenizer):
    text = AnswerText(tokenizer.decode, ["the end"])
    ids = tokenizer.encode("🦙 word " * 200 + "the", bos=False)
    assert not text.ended(ids)
    assert text.ended(ids + tokenizer.encode("the end", bos=False)[-1:])
