import json

import pytest
from PIL import Image

from lav2.data.problems import Problems
from lav2.data.sources import (
    CaptionSource,
    check_images,
    load_image,
    read_captions,
    read_instructions,
    validation_keys,
)
from lav2.errors import UserError


def caption_source(tmp_path, images, annotations, name="captions.json"):
    (tmp_path / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    return CaptionSource(tmp_path / name, tmp_path)


IMAGES = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]


def test_captions(tmp_path):
    source = caption_source(tmp_path, IMAGES, [{"id": 5, "image_id": 2, "caption": " A star.\n"}])
    problems = Problems("captions")
    (example,) = read_captions([source], problems)
    assert (example.instruction, example.input, example.response) == ("Generate caption of this image", "", "A star.")
    assert example.image == tmp_path / "b.png"
    assert problems.total == 1 and problems.summary() == ""


def test_bad_captions_are_named_and_counted(tmp_path):
    good = [{"id": n, "image_id": 1, "caption": "A star."} for n in range(10)]
    bad = [
        {"id": 17, "image_id": 1, "caption": "  "},
        {"id": 18, "image_id": 1, "caption": None},
        {"id": 19, "image_id": 9, "caption": "A star."},
        {"id": 20, "image_id": [1], "caption": "A star."},
        {"id": 21, "caption": "A star."},
        "A star.",
    ]
    source = caption_source(tmp_path, [*IMAGES, {"id": 9}, 7], good + bad)
    problems = Problems("captions", max_bad=1)
    assert len(read_captions([source], problems)) == 10
    assert problems.places == {
        "empty caption": ["captions.json annotation 17"],
        "missing caption": ["captions.json annotation 18", "captions.json entry 15"],
        "caption of an unknown image": [f"captions.json annotation {n}" for n in (19, 20, 21)],
    }
    assert problems.summary().startswith(
        "skipped 6 of 16 captions: 1 empty caption (captions.json annotation 17), 2 missing caption (captions.json"
    )
    with pytest.raises(UserError, match="empty caption: captions.json annotation 17"):
        read_captions([source], Problems("captions", on_error="raise"))


def test_more_bad_samples_than_max_bad_stop_the_run():
    problems = Problems("captions", max_bad=0.05, total=100)
    for number in range(5):
        problems.add("empty caption", f"annotation {number}")
    with pytest.raises(UserError, match=r"more than 5% of 100 captions are bad: 5 empty caption \(annotation 0, .* 1 "):
        problems.add("broken image", "x.jpg")
    weighty = Problems("captions", total=100)
    with pytest.raises(UserError, match="broken image"):
        weighty.add("broken image", "x.jpg", samples=6)


def test_files_that_cannot_be_read_at_all(tmp_path):
    problems = Problems("captions")
    with pytest.raises(UserError, match="no data file .*none.json"):
        read_captions([CaptionSource(tmp_path / "none.json", tmp_path)], problems)
    with pytest.raises(UserError, match="no image folder .*photos"):
        read_captions([CaptionSource(tmp_path / "none.json", tmp_path / "photos")], problems)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(UserError, match="half.json is no readable json: .*line 1 column"):
        read_captions([CaptionSource(tmp_path / "half.json", tmp_path)], problems)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json is no COCO annotation file"):
        read_captions([CaptionSource(tmp_path / "list.json", tmp_path)], problems)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.json is no readable json"):
        read_instructions([tmp_path / "binary.json"], problems)
    with pytest.raises(UserError, match="half.json"):
        read_instructions([tmp_path / "half.json"], problems)
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(UserError, match="object.json holds no json list"):
        read_instructions([tmp_path / "object.json"], problems)


ENTRIES = [
    {"instruction": " Say hello. ", "input": "", "output": "Hello.\n"},
    {"instruction": "Say it in German.", "input": "Hello.", "output": "Hallo."},
    {"instruction": "Count.", "input": None, "output": "One."},
    {"instruction": "Count on.", "output": "Two."},
]
BAD_ENTRIES = [
    {"instruction": "Count."},
    {"instruction": 3, "output": "Three."},
    {"instruction": "Count.", "output": " "},
    {"instruction": "Count.", "input": 3, "output": "Three."},
    ["Count.", "Three."],
    None,
]


def test_instructions(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(ENTRIES))
    # a byte order mark, Windows line ends and a blank line are none of the user's faults
    lines = "\r\n".join(json.dumps(entry) for entry in ENTRIES) + "\r\n\r\n"
    (tmp_path / "good.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    for name in ("good.json", "good.jsonl"):
        problems = Problems("instructions")
        examples = read_instructions([tmp_path / name], problems)
        assert [(e.instruction, e.input, e.response) for e in examples] == [
            ("Say hello.", "", "Hello."),
            ("Say it in German.", "Hello.", "Hallo."),
            ("Count.", "", "One."),
            ("Count on.", "", "Two."),
        ]
        assert problems.total == 4 and not problems.skipped


def test_bad_instructions_are_named_and_counted(tmp_path):
    lines = [json.dumps(entry) for entry in ENTRIES + BAD_ENTRIES] + ['{"instruction": "Cou']
    (tmp_path / "bad.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    problems = Problems("instructions", max_bad=1)
    assert len(read_instructions([tmp_path / "bad.jsonl"], problems)) == 4
    assert problems.total == 12
    assert problems.places == {
        "missing output": ["bad.jsonl line 5"],
        "instruction that is no text": ["bad.jsonl line 6"],
        "empty output": ["bad.jsonl line 7"],
        "input that is no text": ["bad.jsonl line 8"],
        "entry that is no object": ["bad.jsonl line 9", "bad.jsonl line 10"],
        "malformed json line": ["bad.jsonl line 11", "bad.jsonl line 12"],
    }


def test_real_instructions(real_data):
    problems = Problems("instructions")
    assert len(read_instructions([real_data / "instructions" / "alpaca_gpt4_700.json"], problems)) == 700
    assert problems.summary() == ""
    with pytest.raises(UserError, match="more than 5% of 175 instructions are bad: 9 missing output"):
        read_instructions([real_data / "instructions" / "seed_tasks.jsonl"], Problems("instructions"))


def test_images(tmp_path):
    Image.new("P", (5, 4)).save(tmp_path / "good.png")
    assert load_image(tmp_path / "good.png").mode == "RGB"
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "folder.png").mkdir()
    bad = {}
    names = ["good.png", "whole.jpg", "cut.jpg", "text.jpg", "empty.png", "cut.png", "folder.png", "none.jpg"]
    check_images([tmp_path / name for name in names], lambda path, reason: bad.update({path.name: reason}))
    assert bad == dict.fromkeys(names[2:7], "broken image") | {"none.jpg": "missing image"}


def test_one_image_has_one_key_however_it_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    write = {"id": 1, "image_id": 1, "caption": "A star."}
    first = caption_source(tmp_path, [{"id": 1, "file_name": "images/a.png"}], [write])
    second = caption_source(tmp_path, [{"id": 1, "file_name": "a.png"}], [write], "details.json")
    second = CaptionSource(second.annotations, tmp_path / "images", "Describe the image in detail.")
    one, other = read_captions([first, second], Problems("captions"))
    assert one.image == other.image and one.key == other.key
    assert other.instruction == "Describe the image in detail."


def test_validation_split():
    keys = [f"{number}.jpg" for number in range(2000)]
    held_out = validation_keys(keys, 0.05, seed=0)
    assert 60 < len(held_out) < 140
    assert validation_keys(reversed(keys), 0.05, seed=0) == held_out
    assert validation_keys(keys, 0.05, seed=1) != held_out
    # a key stays on its side whatever is added or taken away
    assert validation_keys(keys + [f"new {n}" for n in range(500)], 0.05, seed=0) & set(keys) == held_out
    assert validation_keys(keys[:1000], 0.05, seed=0) == held_out & set(keys[:1000])
    assert len(validation_keys(keys[:3], 1e-9, seed=0)) == 1
    assert validation_keys(keys, 0, seed=0) == set() == validation_keys(keys[:1], 0.5, seed=0)


def test_the_same_question_has_one_key_in_all_files(tmp_path):
    for name, answer in (("one.json", "Two."), ("other.json", "2")):
        (tmp_path / name).write_text(json.dumps([{"instruction": "Add.", "input": i, "output": answer} for i in "ab"]))
    examples = read_instructions([tmp_path / "one.json", tmp_path / "other.json"], Problems("instructions"))
    keys = [example.key for example in examples]
    assert keys[:2] == keys[2:] and keys[0] != keys[1]
