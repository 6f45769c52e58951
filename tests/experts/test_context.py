"""Experts' texts enter the prompt as context, never too long, and never at the cost of the question or the answer."""

import threading

import pytest
from PIL import Image

from lav2 import load
from lav2.data.examples import Turn
from lav2.errors import UserError
from lav2.experts import Experts
from lav2.experts.context import cut
from tests.experts.conftest import Says, write_adapter

QUESTION = "What color is the circle?"


class Fails:
    name = "ocr"

    def __call__(self, image):
        raise RuntimeError("the model\nis gone")


class Waits:
    """An expert that answers when it is let go."""

    name = "ocr"

    def __init__(self):
        self.let_go, self.asked = threading.Event(), 0

    def __call__(self, image):
        self.asked += 1
        self.let_go.wait(20)
        return "EXIT"


def told(experts, assistant, picture, instruction=QUESTION, given="", max_new_tokens=8):
    (text,), _ = experts.add_context(assistant, [instruction], [picture], [given], {"max_new_tokens": max_new_tokens})
    return text


def test_each_text_is_a_line_below_the_input(assistant, picture):
    experts = Experts([Says("a red circle"), Says("EXIT 25", name="ocr"), Says("", name="tags")])
    assert told(experts, assistant, picture) == "caption: a red circle\nocr: EXIT 25"
    assert told(experts, assistant, picture, given="Be brief.") == "Be brief.\ncaption: a red circle\nocr: EXIT 25"
    other = Experts(experts.experts, line="<{name}> {text}")
    assert told(other, assistant, picture) == "<caption> a red circle\n<ocr> EXIT 25"


def test_what_the_model_reads(assistant, picture, monkeypatch):
    """The template's input holds the texts, row by row; a row without an image stays as it is."""
    read = []

    def answer(self, prompts, visual, *_, **__):
        read.append((["".join(segment.text for segment in prompt) for prompt in prompts], visual))

    monkeypatch.setattr(type(assistant), "answer", answer)
    assistant.generate([QUESTION, "Say hello."], [picture, None], experts=[Says("a red circle")])
    ((prompts, visual),) = read
    assert prompts[0] == f"### Instruction:\n{QUESTION}\n\n### Input:\ncaption: a red circle\n\n### Response:"
    assert prompts[1] == "### Instruction:\nSay hello.\n\n### Response:"
    assert visual[0].shape == (36, 96) and visual[1] is None
    assistant.generate([QUESTION], [picture], experts=Experts([Says("a red circle")], with_image=False))
    assert read[1] == ([prompts[0]], [None])


def test_a_streamed_answer_is_the_same(assistant, picture):
    expert = Says("The circle is red.")
    pieces = assistant.stream(QUESTION, picture, experts=[expert], max_new_tokens=12)
    assert ["".join(pieces)] == assistant.generate([QUESTION], [picture], experts=[expert], max_new_tokens=12)
    assert len(expert.asked) == 1


def test_an_answer_with_experts_is_the_answer_with_their_texts_as_input(assistant, picture):
    same = {"max_new_tokens": 12}
    text = "The circle is red. The square is blue. The star is above the heart."
    experts = [Says(text), Fails()]
    with_experts = assistant.generate([QUESTION], [picture], experts=experts, **same)
    assert with_experts == assistant.generate([QUESTION], [picture], [f"caption: {text}"], **same)


def test_an_adapter_without_a_visual_path_sees_through_experts(picture, tmp_path):
    model = load(write_adapter(tmp_path, seed=1, sees=False), device="cpu")
    with pytest.raises(UserError, match="cannot see"):
        model.generate([QUESTION], [picture])
    answer = model.generate([QUESTION], [picture], experts=[Says("a red circle")], max_new_tokens=8)
    assert answer == model.generate([QUESTION], inputs=["caption: a red circle"], max_new_tokens=8)


def test_an_expert_that_fails_is_named_and_left_out(assistant, picture, capsys):
    experts = Experts([Fails(), Says("a red circle"), Says(None, name="tags")])
    picture.filename = "street.png"
    said = experts.consult(picture)
    assert said.texts == {"caption": "a red circle"}
    assert said.failures["ocr"] == "RuntimeError: the model is gone"
    assert "gave NoneType instead of text" in said.failures["tags"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("expert 'ocr' says nothing about street.png: RuntimeError: the model is gone")
    assert len(lines) == 2
    assert told(experts, assistant, picture) == "caption: a red circle"


def test_a_slow_expert_is_named_and_its_late_answer_is_kept(picture):
    slow = Waits()
    experts = Experts([slow, Says("a red circle")], timeout=0.1)
    said = experts.consult(picture)
    assert said.failures == {"ocr": "no answer within 0.1 seconds"} and said.texts == {"caption": "a red circle"}
    other = Image.new("RGB", (8, 8))
    assert "busy with an earlier image" in experts.consult(other).failures["ocr"] and slow.asked == 1
    slow.let_go.set()
    experts.late["ocr"].result(timeout=20)
    assert experts.consult(picture).texts["ocr"] == "EXIT" and slow.asked == 1
    assert experts.consult(other).texts["ocr"] == "EXIT" and slow.asked == 2


LONG = " ".join(f"word{number}" for number in range(400))


@pytest.mark.parametrize("max_tokens", [1, 10, 40])
def test_the_context_is_cut_to_its_tokens(assistant, picture, max_tokens, capsys):
    text = told(Experts([Says(LONG)], max_tokens=max_tokens), assistant, picture)
    length = len(assistant.tokenizer.encode(text, bos=False))
    assert length <= max_tokens and (length > max_tokens - 8 or max_tokens == 1)
    assert "caption: " + LONG[: len(text) - len("caption: ")] == text if text else max_tokens == 1
    assert "more than fits" in capsys.readouterr().err


def test_the_question_and_the_answer_keep_their_room(assistant, picture):
    """Of a prompt that would fill the model, only the experts' part is cut."""
    longest = assistant.model.llama.config.max_length
    experts = Experts([Says(LONG)], max_tokens=10_000)
    given = "The square is blue. " * 5
    text = told(experts, assistant, picture, given=given, max_new_tokens=50)
    prompt = assistant.template.render([Turn(QUESTION, text)])
    assert QUESTION in prompt[0].text and text.startswith(given)
    assert longest - 58 < len(assistant.prompt_tokens(prompt, has_image=True)) <= longest - 50
    full = "The square is blue. " * 60  # no room for any context: the input alone stays
    assert told(experts, assistant, picture, given=full) == full


def test_the_longest_text_is_cut_first(assistant, picture):
    text = told(Experts([Says(LONG), Says("a red circle", name="tags")], max_tokens=60), assistant, picture)
    assert text.endswith("\ntags: a red circle") and len(text) > 60


def test_words_stay_whole():
    assert cut("one two three", 9) == "one two" and cut("one two three", 7) == "one two"
    assert cut("one, two", 6) == "one" and cut("unbreakable", 4) == "unbr" and cut("one", 9) == "one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": [Says("a"), Says("b")]}, "two experts are called 'caption'"),
        ({"line": "{nam}: {text}"}, "context.line is"),
        ({"line": "{}"}, "context.line is"),
        ({"max_tokens": 0}, "context.max_tokens is 0"),
        ({"timeout": 0}, "context.timeout is 0"),
        ({"timeout": "soon"}, "context.timeout is 'soon'"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        Experts(**{"experts": [Says("a")]} | settings)
