"""Entries of a data config: what they may say, and which files they need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lav2.data.scienceqa import FORMATS

# format → what an entry of it must say, and what it may say
CAPTION_FORMATS = {
    "coco": (("annotations", "images"), ("prompt",)),
    "karpathy": (("annotations", "images"), ("prompt", "splits")),
    "tsv": (("annotations", "images"), ("prompt",)),
    "llava": (("annotations", "images"), ("prompt",)),
}
INSTRUCTION_FORMATS = {
    "alpaca": (("path",), ()),
    "sharegpt": (("path",), ()),
    "llava": (("path", "images"), ()),
    "scienceqa": (("folder", "split"), ("prompt_format", "images")),
}
FILES, FOLDERS = ("annotations", "path"), ("images", "folder")


def caption_fault(entry: Any) -> str | None:
    """What is wrong with an entry of ``captions``, in itself."""
    if fault := _fault("a captions entry", entry, CAPTION_FORMATS, "coco"):
        return fault
    if not isinstance(entry.get("prompt", ""), str):
        return f"a captions entry has the prompt {entry['prompt']!r}; give text, or leave it out for the default"
    splits = entry.get("splits", ["train"])
    if isinstance(splits, str) or not isinstance(splits, Sequence) or not splits:
        return f"a captions entry has the splits {splits!r}; give a list such as [train, restval]"
    return None


def instruction_fault(entry: Any) -> str | None:
    """What is wrong with an entry of ``instructions``, in itself; a bare path is an Alpaca file."""
    if entry is None or isinstance(entry, str | Path):
        return None
    if fault := _fault("an instructions entry", entry, INSTRUCTION_FORMATS, "alpaca"):
        return fault
    if entry.get("format") != "scienceqa":
        return None
    if entry.get("prompt_format", FORMATS[0]) not in FORMATS:
        return f"an instructions entry has the prompt_format {entry['prompt_format']!r}; choose {' or '.join(FORMATS)}"
    if type(entry.get("images", True)) is not bool:
        return f"an instructions entry has the images {entry['images']!r}; for ScienceQA that is true or false"
    return None


def _fault(noun: str, entry: Any, formats: Mapping, default: str) -> str | None:
    if not isinstance(entry, Mapping):
        return f"{noun} is {entry!r}; give a mapping such as {{format: {default}, …}}"
    form = entry.get("format", default)
    if form not in tuple(formats):
        return f"{noun} has the format {form!r}; choose one of {', '.join(formats)}"
    needed, optional = formats[form]
    given = set(entry) - {"format"}
    if not set(needed) <= given <= {*needed, *optional}:
        return f"{noun} of format {form} has {sorted(map(str, given))}; it takes {', '.join(needed + optional)}"
    return None


def missing_files(noun: str, entries: Sequence) -> list[str]:
    """What ``entries`` (``captions`` or ``instructions``) need and is not there, one line each."""
    lost = []
    for entry in entries:
        entry = entry if isinstance(entry, Mapping) else {"path": entry}
        for name, path in entry.items():
            if name not in FILES + FOLDERS or isinstance(path, bool):  # ScienceQA's images: yes or no
                continue
            if path in (None, "", "None"):
                what, setting = ("a path", noun) if name == "path" else (name, name)
                lost.append(f"{noun}: {what} is not set (paths.{setting})")
            elif name in FILES:
                lost += [] if Path(path).is_file() else [f"no file {path}"]
            elif not Path(path).is_dir():
                lost.append(f"no {'image ' if name == 'images' else ''}folder {path}")
    return lost


def has_images(entry: Any) -> bool:
    """Whether the samples of an entry of ``instructions`` may have images."""
    return isinstance(entry, Mapping) and bool(entry.get("images", entry.get("format") == "scienceqa"))
