"""Answers are kept by what an image shows, and only as long as they depend on nothing else."""

import torch
from PIL import Image

from lav2.experts import Experts, image_key
from lav2.experts.images import digest, open_image
from tests.experts.conftest import Says


def test_a_key_is_of_the_content(picture, tmp_path):
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    keys = {image_key(open_image(tmp_path / name)) for name in ("a.png", "b.bmp")}
    assert keys == {image_key(picture)}
    assert image_key(picture.convert("RGBA")) == image_key(picture)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    reshaped = Image.frombytes("RGB", (48, 64), picture.tobytes())
    picture.putpixel((0, 0), (254, 255, 255))
    assert len(keys | {image_key(turned), image_key(reshaped), image_key(picture)}) == 4


def test_an_opened_image_knows_its_file(picture, tmp_path):
    picture.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").filename == str(tmp_path / "a.png")
    assert open_image(Image.open(tmp_path / "a.png")).filename == str(tmp_path / "a.png")


def test_an_expert_is_asked_once_for_each_content(assistant, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    expert = Says("a red circle")
    for image in (picture, tmp_path / "a.png"):
        assistant.generate(["What is this?"] * 2, [image, image], experts=[expert], max_new_tokens=1)
    assert len(expert.asked) == 1
    Experts([expert]).consult(Image.new("RGB", (4, 4)))
    assert len(expert.asked) == 2


def test_a_folder_keeps_answers_of_experts_that_know_themselves(picture, tmp_path):
    def consult(fingerprint):
        expert = Says("Zoë's café\nEXIT")
        if fingerprint:
            expert.fingerprint = fingerprint
        said = Experts([expert], cache=tmp_path).consult(picture)
        assert said.texts == {"caption": "Zoë's café\nEXIT"}
        return len(expert.asked)

    assert consult("vocabulary 1") == 1 and consult("vocabulary 1") == 0
    assert consult("vocabulary 2") == 1  # other settings, other answers
    assert consult(None) == 1 and consult(None) == 1
    assert len(list(tmp_path.glob("*/*.txt"))) == 2


def test_a_digest_is_of_every_value():
    state = {"a": torch.zeros(3, 2), "b": torch.tensor(1.0), "c": torch.ones(2, dtype=torch.bfloat16)}
    changed = {**state, "c": torch.tensor([1.0, 1.01], dtype=torch.bfloat16)}
    assert digest(state) == digest({name: tensor.clone() for name, tensor in state.items()})
    assert len({digest(state), digest(changed), digest(state, "x"), digest({"a": state["a"].T})}) == 4
