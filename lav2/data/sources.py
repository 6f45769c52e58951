"""Captions and instructions as people have them on disk: COCO annotation files, Alpaca files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from lav2.data.problems import Problems
from lav2.errors import UserError

CAPTION_PROMPT = "Generate caption of this image"
MALFORMED = object()


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction and its response, before any template and tokenizer.

    ``key`` decides on which side of the validation split it falls: examples of one key stay together.
    ``where`` names its place for messages.
    """

    instruction: str
    input: str
    response: str
    key: str
    where: str
    image: Path | None = None


@dataclass(frozen=True)
class CaptionSource:
    """A COCO annotation file, the folder its ``file_name`` entries start from, and what the model is asked."""

    annotations: str | Path
    images: str | Path
    prompt: str = CAPTION_PROMPT


def read_captions(sources: Iterable[CaptionSource], problems: Problems) -> list[Example]:
    """All captions of one or several COCO annotation files, without looking into the images.

    Bad entries go to ``problems``; an image with none of its own (say, a wrong id) shows in its captions.

    Raises:
        UserError: a file or folder is missing or is not in COCO's annotation format.
    """
    files = []
    for source in sources:
        path, folder = Path(source.annotations), Path(source.images)
        if not folder.is_dir():
            raise UserError(f"no image folder {folder} (given with {path})")
        content = _load_json(path)
        lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
        if not all(isinstance(entries, list) for entries in lists):
            raise UserError(f'{path} is no COCO annotation file: expected {{"images": […], "annotations": […]}}')
        files.append((source, folder, path, *lists))
        problems.total += len(lists[1])

    keys: dict[Path, str] = {}  # one image has one key, even if two files name it differently
    examples = []
    for source, folder, path, images, annotations in files:
        root = Path(os.path.abspath(folder))
        image_of = {}
        for image in images:
            name, id = (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
            if isinstance(name, str) and isinstance(id, int | str):
                image_of[id] = Path(os.path.normpath(root / name))
                keys.setdefault(image_of[id], name)
        for position, annotation in enumerate(annotations):
            where, caption, image_path = f"{path.name} entry {position}", None, None
            if isinstance(annotation, dict):
                where = f"{path.name} annotation {annotation.get('id', position)}"
                caption = annotation.get("caption")
                if isinstance(annotation.get("image_id"), int | str):
                    image_path = image_of.get(annotation["image_id"])
            if not isinstance(caption, str):
                problems.add("missing caption", where)
            elif not caption.strip():
                problems.add("empty caption", where)
            elif image_path is None:
                problems.add("caption of an unknown image", where)
            else:
                examples.append(Example(source.prompt, "", caption.strip(), keys[image_path], where, image_path))
    return examples


def read_instructions(paths: Iterable[str | Path], problems: Problems) -> list[Example]:
    """All samples ``{"instruction", "input", "output"}`` of Alpaca files: a json list, or one object a line (.jsonl).

    An ``input`` that is absent, null or blank means none. Bad samples go to ``problems``.

    Raises:
        UserError: a file is missing, or is no json list.
    """
    files = []
    for path in map(Path, paths):
        entries = _load_lines(path) if path.suffix == ".jsonl" else _load_list(path)
        files.append((path, entries))
        problems.total += len(entries)

    examples = []
    for path, entries in files:
        for position, entry in entries:
            where = f"{path.name} {'line' if path.suffix == '.jsonl' else 'entry'} {position}"
            reason = _instruction_fault(entry)
            if reason:
                problems.add(reason, where)
                continue
            instruction, input = entry["instruction"].strip(), (entry.get("input") or "").strip()
            key = json.dumps([instruction, input])  # the same question never stands on both sides
            examples.append(Example(instruction, input, entry["output"].strip(), key, where))
    return examples


def _instruction_fault(entry: Any) -> str | None:
    if entry is MALFORMED:
        return "malformed json line"
    if not isinstance(entry, dict):
        return "entry that is no object"
    for name in ("instruction", "output"):
        if name not in entry:
            return f"missing {name}"
        if not isinstance(entry[name], str):
            return f"{name} that is no text"
        if not entry[name].strip():
            return f"empty {name}"
    if not isinstance(entry.get("input"), str | None):
        return "input that is no text"
    return None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"no data file {path}; check the path in the data config")
    return path.read_bytes()


def _load_json(path: Path) -> Any:
    try:
        return json.loads(_read(path).decode("utf-8-sig"))
    except ValueError as error:  # not json, or not utf-8
        raise UserError(f"{path} is no readable json: {error}") from None


def _load_list(path: Path) -> list[tuple[int, Any]]:
    content = _load_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} holds no json list; one object a line needs the suffix .jsonl")
    return list(enumerate(content))


def _load_lines(path: Path) -> list[tuple[int, Any]]:
    """(line number, object) of every line that is not blank; MALFORMED stands for one that cannot be read."""
    entries = []
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                entries.append((number, json.loads(line)))
            except ValueError:
                entries.append((number, MALFORMED))
    return entries


def load_image(path: Path) -> Image.Image:
    """The decoded RGB image.

    Raises:
        OSError: the file is missing (FileNotFoundError) or is no image that Pillow can decode in full.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow also raises on broken files
        raise OSError(f"{path}: {error}") from None


def check_images(paths: list[Path], on_bad: Callable[[Path, str], None]) -> None:
    """Decode every image once; ``on_bad(path, reason)`` for each that cannot be."""
    for path in track(paths, "checking images"):
        try:
            load_image(path)
        except OSError as error:
            on_bad(path, image_fault(error))


def image_fault(error: OSError) -> str:
    """The reason in :class:`Problems` for what :func:`load_image` raised."""
    return "missing image" if isinstance(error, FileNotFoundError) else "broken image"


def validation_keys(keys: Iterable[str], fraction: float, seed: int) -> set[str]:
    """The keys held out for validation: about ``fraction`` of them, at least one (unless the fraction is 0).

    Each key is chosen by its own hash, so it stays on its side whatever else is added to the data.
    """
    keys = set(keys)
    if fraction == 0 or len(keys) < 2:
        return set()
    # 8 bytes of hash as a fraction of all their values
    score = {
        key: int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big") / 2**64
        for key in keys
    }
    return {key for key in keys if score[key] < fraction} or {min(keys, key=lambda key: (score[key], key))}
