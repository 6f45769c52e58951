"""Boxes of things in a picture, as words."""

from collections.abc import Iterable

LARGE = 0.2  # of the picture's area
IRREGULAR = {
    "person": "people",
    "mouse": "mice",
    "sheep": "sheep",
    "knife": "knives",
    "skis": "skis",
    "scissors": "scissors",
}

# What it is, and its left, top, right and bottom as shares of the picture's width and height
Box = tuple[str, tuple[float, float, float, float]]


def describe_boxes(boxes: Iterable[Box]) -> str:
    """What is where: ``person (left, large), 2 cars (right)``.

    The place is the third of the width, ``left``, ``middle`` or ``right``, in which a box has its middle; ``large`` is
    what covers a fifth of the picture or more. Things of one name, place and size are counted together; the largest
    come first.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for label, (left, top, right, bottom) in boxes:
        area = (right - left) * (bottom - top)
        place = ("left", "middle", "right")[min(2, max(0, int(3 * (left + right) / 2)))]
        groups.setdefault((label, f"{place}, large" if area >= LARGE else place), []).append(area)
    ordered = sorted(groups.items(), key=lambda group: -max(group[1]))
    return ", ".join(
        f"{label if len(areas) == 1 else f'{len(areas)} {plural(label)}'} ({where})"
        for (label, where), areas in ordered
    )


def plural(word: str) -> str:
    """The English plural, right for COCO's 80 names."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
