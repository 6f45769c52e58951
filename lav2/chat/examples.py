"""Pictures and questions to begin with."""

import json
from collections import Counter
from pathlib import Path

from lav2.data.images import load_image
from lav2.errors import UserError

COUNT = 4
SIDE = 512  # pixels of the copies


def find_examples(run: Path, folder: str | Path | None, question: str) -> list[tuple[Path, str]]:
    """Up to four pictures with a question each: those in ``folder``, asked ``question``, or those of the run's own
    evaluations, asked what they were asked there.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    if folder is None:
        return evaluated(run)
    if not Path(folder).is_dir():
        raise UserError(f"web.examples is {folder}: no folder there")
    pictures = []
    for path in sorted(Path(folder).iterdir()):
        if len(pictures) < COUNT and path.is_file() and is_picture(path):
            pictures.append((path, question))
    if not pictures:
        raise UserError(f"web.examples is {folder}: no picture in it")
    return pictures


def evaluated(run: Path) -> list[tuple[Path, str]]:
    """Pictures of the run's evaluations, with as many different questions as there are."""
    asked, times = [], Counter()
    for file in sorted((run / "evaluation").glob("*/predictions.jsonl")):
        for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
            entry = json.loads(line)
            if entry.get("image"):
                asked.append((times[entry["prompt"]], Path(entry["image"]), entry["prompt"]))
                times[entry["prompt"]] += 1
    chosen: dict[Path, str] = {}
    for _, path, question in sorted(asked, key=lambda one: one[0]):
        if len(chosen) < COUNT and path not in chosen and is_picture(path):
            chosen[path] = question
    return list(chosen.items())


def is_picture(path: Path) -> bool:
    try:
        load_image(path)
    except OSError:
        return False
    return True


def copy_small(examples: list[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    """The examples with copies of their pictures in ``folder``, no side longer than 512 pixels."""
    copies = []
    for number, (path, question) in enumerate(examples, start=1):
        picture = load_image(path)
        picture.thumbnail((SIDE, SIDE))
        copy = folder / f"example_{number}.png"
        picture.save(copy)
        copies.append((copy, question))
    return copies
