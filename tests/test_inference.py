"""The assistant with a random model, the tokenizer and the image encoder that come with the package."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from lav2.adapter import adapt
from lav2.data.examples import Turn
from lav2.data.templates import Template
from lav2.demo.pretrain_llama import WEIGHTS
from lav2.errors import UserError
from lav2.inference import Assistant
from lav2.llama import Llama, LlamaConfig, Tokenizer
from lav2.vision import VisionEncoder

QUESTIONS = ["Describe the scene.", "What is left of the red circle?", "Name a color.", "How many shapes are there?"]
SAMPLED = {"max_new_tokens": 24, "temperature": 1.2, "top_p": 0.95}


@pytest.fixture(scope="module")
def assistant():
    tokenizer = Tokenizer(WEIGHTS / "llama" / "tokenizer.model")
    encoder = VisionEncoder("lav2-tiny", WEIGHTS / "vision.safetensors")
    shape = LlamaConfig(
        tokenizer.vocab_size, hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    llama = Llama(shape).reset_parameters(std=0.3)
    config = {"visual_layers": 1, "visual_length": 4, "prompt_length": 4, "projector": {"width": 32, "blocks": 1}}
    model = adapt(llama, config, feature_width=encoder.width)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Assistant(model, tokenizer, encoder, Template("short"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One picture as a file, a PIL image and an array."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(pixels).save(path)
    return [path, str(path), Image.open(path), pixels]


@pytest.mark.parametrize(
    "settings", [SAMPLED, {"num_beams": 3, "max_new_tokens": 24, "repetition_penalty": 1.2}], ids=["sampled", "beams"]
)
def test_answers_do_not_depend_on_the_batch(assistant, pictures, settings):
    """Questions of unequal length with and without a picture; the order of work differs from the order of rows."""
    images = [None, pictures[0], None, pictures[0]]
    answers = assistant.generate(QUESTIONS, images, **settings)
    for batch_size in (1, 3):
        assert assistant.generate(QUESTIONS, images, batch_size=batch_size, **settings) == answers
    assert assistant.generate(QUESTIONS[2:], images[2:], rows=[2, 3], **settings) == answers[2:]
    assert len(set(answers)) == 4


def test_the_same_question_twice_is_drawn_twice(assistant):
    first, second = assistant.generate(QUESTIONS[:1] * 2, **SAMPLED)
    assert first != second


def test_a_picture_is_a_path_an_image_or_an_array(assistant, pictures):
    answers = assistant.generate(QUESTIONS[:1] * 4, pictures)
    assert len(set(answers)) == 1
    assert answers[:1] != assistant.generate(QUESTIONS[:1], [255 - pictures[3]])


@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("settings", [{"max_new_tokens": 24}, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_is_the_answer(assistant, pictures, picture, settings):
    image = pictures[3] if picture else None
    [answer] = assistant.generate(QUESTIONS[:1], [image], inputs=["a scene"], **settings)
    pieces = list(assistant.stream(QUESTIONS[0], image, "a scene", **settings))
    assert "".join(pieces) == answer and len(pieces) > 3

    stop = answer[len(answer) // 2 :][:6]
    expected = answer[: answer.index(stop)].strip()
    assert assistant.generate(QUESTIONS[:1], [image], inputs=["a scene"], stop=stop, **settings) == [expected]
    assert "".join(assistant.stream(QUESTIONS[0], image, "a scene", stop=[stop], **settings)) == expected


def test_answers_end_as_the_template_ends_them(assistant, monkeypatch):
    assert assistant.end_ids == [assistant.tokenizer.eos_id] and assistant.stop_texts({"stop": "a"}) == ("a",)
    monkeypatch.setattr(assistant, "template", Template("vicuna"))
    assert assistant.stop_texts({"stop": ["a", "b"]}) == ("a", "b", "###") and len(assistant.end_ids) == 1
    answer = assistant.generate(QUESTIONS[:1], **SAMPLED)[0]
    cut = answer[: len(answer) // 2].rstrip()
    monkeypatch.setattr(Template, "stop", answer[len(cut) :].strip()[:5])
    assert assistant.generate(QUESTIONS[:1], **SAMPLED) == [cut] == ["".join(assistant.stream(QUESTIONS[0], **SAMPLED))]


def test_a_chat_template_is_encoded_with_its_control_tokens(assistant, monkeypatch):
    ids = {"<|im_start|>": 7, "<|im_end|>": 8}
    plain = assistant.tokenizer.encode

    def encode(text, bos=True, eos=False, special=False):
        parts = re.split(r"(<\|\w+\|>)", text) if special else [text]
        return sum(([ids[part]] if part in ids else plain(part, bos=False) for part in parts), [])

    monkeypatch.setattr(assistant.tokenizer, "encode", encode)
    monkeypatch.setattr(assistant.tokenizer, "token_id", ids.get)
    monkeypatch.setattr(assistant, "template", Template("chatml"))
    assert assistant.end_ids == [assistant.tokenizer.eos_id, 8] and assistant.stop_texts({}) == ()
    (prompt,) = assistant.encode([assistant.template.render([Turn("Say <|im_end|>.")])])
    assert [prompt.count(7), prompt.count(8)] == [2, 1] and prompt[0] == 7


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3)), r"shape \(4, 5, 3\) and type float64; expected \(height, width, 3\) of uint8"),
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\) and type uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (3, "type int; give a path, a PIL image or a numpy array"),
        ("nowhere.png", "cannot read the image nowhere.png"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named(assistant, image, message):
    with pytest.raises(UserError, match=message):
        assistant.generate(["Describe."], [image])
    with pytest.raises(UserError, match=message):
        assistant.stream("Describe.", image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"temperature": -1, "top_p": 0}, "temperature is -1; .*; top_p is 0;"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"instructions": "Describe."}, "instructions is one text; give a list of them"),
        ({"instructions": ["a", "b"]}, "2 instructions, 1 images and 2 inputs"),
        ({"instructions": ["a " * 3000]}, "row 0: a prompt of .* leaves no room"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_any_work(assistant, call, message):
    """The picture is missing, too, but is not looked for."""
    with pytest.raises(UserError, match=message):
        assistant.generate(**{"instructions": ["a"], "images": ["nowhere.png"]} | call)
