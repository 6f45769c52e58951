"""Ready answers are found by file name and by content."""

import json

import pytest
from PIL import Image

from lav2.errors import UserError
from lav2.experts import Experts, image_key
from lav2.experts.answers import ReadyAnswers
from lav2.experts.boxes import plural
from lav2.experts.images import open_image


def write(path, *entries):
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n", encoding="utf-8")
    return path


def test_by_name_and_by_content(picture, tmp_path):
    picture.save(tmp_path / "cat.png")
    other = Image.new("RGB", (5, 5), "blue")
    file = write(
        tmp_path / "answers.jsonl",
        {"image": "photos/cat.png", "text": " un café "},
        {"image": image_key(other), "text": "all blue"},
    )
    expert = ReadyAnswers(file)
    assert expert(open_image(tmp_path / "cat.png")) == "un café" and expert(other) == "all blue"
    with pytest.raises(UserError, match="tells nothing of this image"):
        expert(picture)
    said = Experts([expert]).consult(picture)
    assert not said.texts and "tells nothing" in said.failures["notes"]


def test_captions_and_boxes_of_real_pictures(real_data):
    file = real_data / "eval" / "caps_boxes_coco2014_val_80.jsonl"
    captions, boxes = ReadyAnswers(file, "captions"), ReadyAnswers(file, "instances", name="objects")
    for entry in map(json.loads, file.read_text().splitlines()):
        image = Image.new("RGB", (2, 2))
        image.filename = f"/coco/val2014/{entry['image']}"
        assert captions(image) == " ".join(text.strip() for text in entry["captions"])
        categories = {box["category"] for box in entry["instances"]}
        assert all(category in boxes(image) or plural(category) in boxes(image) for category in categories)


@pytest.mark.parametrize("line", ["{", "[1]", '{"image": "a.png"}', '{"text": "a"}', '{"image": "a.png", "text": 5}'])
def test_a_malformed_line_is_named(line, tmp_path):
    file = write(tmp_path / "answers.jsonl", {"image": "b.png", "text": "fine"})
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match="entry 2: expected an object with 'image' and 'text'"):
        ReadyAnswers(file)


def test_one_name_has_one_answer(tmp_path):
    entries = [{"image": f"{folder}/0.png", "text": folder} for folder in ("train", "val")]
    with pytest.raises(UserError, match="entry 2: 0.png has an answer already"):
        ReadyAnswers(write(tmp_path / "answers.jsonl", *entries))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl"):
        ReadyAnswers(tmp_path / "nowhere.jsonl")


def test_one_picture_under_two_names_has_two_answers(picture, tmp_path):
    """What was said before about the same picture is no answer to the other name; a line separator ends no line."""
    for name in ("q1.png", "q2.png"):
        picture.save(tmp_path / name)
    entries = {"image": "q1.png", "text": "A\u2028and more"}, {"image": "q2.png", "text": "B"}
    experts = Experts([ReadyAnswers(write(tmp_path / "answers.jsonl", *entries))])
    said = [experts.consult(tmp_path / name).texts["notes"] for name in ("q1.png", "q2.png")]
    assert said == ["A\u2028and more", "B"]
