"""Boxes as words, on real boxes of COCO too."""

import json
import re

from lav2.experts.boxes import describe_boxes, plural


def test_what_is_where():
    person, car = (0.02, 0.1, 0.4, 0.9), (0.7, 0.6, 0.8, 0.7)
    boxes = [("car", car), ("person", person), ("car", (0.8, 0.6, 0.95, 0.7)), ("dog", (0.4, 0.8, 0.6, 0.9))]
    assert describe_boxes(boxes) == "person (left, large), dog (middle), 2 cars (right)"
    assert describe_boxes([]) == ""
    assert describe_boxes([("bus", (0, 0, 1, 1)), ("bus", (0.4, 0.4, 0.5, 0.5))]) == "bus (middle, large), bus (middle)"
    assert describe_boxes([("kite", (0.99, 0, 1.2, 0.1)), ("kite", (-0.2, 0, 0.1, 0.1))]) == "kite (left), kite (right)"


def test_plurals_of_coco_names():
    names = "person,bus,sandwich,wine glass,knife,toothbrush,sheep,mouse,skis,scissors,dining table"
    plurals = "people,buses,sandwiches,wine glasses,knives,toothbrushes,sheep,mice,skis,scissors,dining tables"
    assert [plural(name) for name in names.split(",")] == plurals.split(",")


def test_every_box_of_real_pictures_is_told(real_data):
    """The counts add up to the boxes, category by category, and places are those of the boxes."""
    lines = (real_data / "eval" / "caps_boxes_coco2014_val_80.jsonl").read_text().splitlines()
    for entry in map(json.loads, lines):
        boxes = [(box["category"], tuple(box["bbox"])) for box in entry["instances"]]
        counted: dict[tuple[str, str], int] = {}
        singular = {plural(name): name for name, _ in boxes} | {name: name for name, _ in boxes}
        for count, name, place in re.findall(r"(?:(\d+) )?([a-z][a-z ]*) \((\w+)(?:, large)?\)", describe_boxes(boxes)):
            key = singular[name], place
            counted[key] = counted.get(key, 0) + int(count or 1)
        expected: dict[tuple[str, str], int] = {}
        for name, (left, _, right, _) in boxes:
            middle = (left + right) / 2
            key = name, "left" if middle < 1 / 3 else "middle" if middle < 2 / 3 else "right"
            expected[key] = expected.get(key, 0) + 1
        assert counted == expected
    assert len(lines) == 80
