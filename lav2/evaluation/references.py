"""Reference captions by COCO image id, from COCO's annotation files and from Karpathy's; captions in COCO's result
format."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.captions import CaptionSource, read_captions
from lav2.data.files import read_json
from lav2.data.images import check_images
from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation.coco import some

FORMATS = ("coco", "karpathy")


@dataclass
class ReferencedImage:
    """An image to caption: its COCO id, its name in the annotation file, its place and its reference captions."""

    id: int | str
    name: str
    path: Path
    captions: list[str] = field(default_factory=list)


def read_references(
    annotations: Path, images: Path, format: str, split: str | None, problems: Problems
) -> list[ReferencedImage]:
    """The images to caption, in the file's order; bad captions and images that cannot be read go to ``problems``.

    Args:
        annotations: a COCO annotation file, or Karpathy's ``dataset_coco.json``.
        images: the folder that the file's image names start from.
        format: ``coco`` or ``karpathy``.
        split: of Karpathy's file.

    Raises:
        UserError: a file is missing or of another format; image ids come twice; nothing is left to score.
    """
    captions: dict[Path, list[str]] = {}
    source = CaptionSource(annotations, images, format=format, splits=[split] if format == "karpathy" else None)
    for example in read_captions([source], problems):
        captions.setdefault(example.image, []).append(example.response)
    entries = list((karpathy_entries if format == "karpathy" else coco_entries)(annotations, split))
    refuse_duplicates((id for id, _ in entries), annotations)
    refuse_duplicates((name for _, name in entries), annotations)
    places = [Path(os.path.normpath(images.absolute() / name)) for _, name in entries]
    found = [
        ReferencedImage(id, name, path, captions[path])
        for (id, name), path in zip(entries, places, strict=True)
        if path in captions
    ]
    bad: dict[Path, str] = {}
    check_images([image.path for image in found], bad.__setitem__)
    for image in found:
        if image.path in bad:
            problems.add(bad[image.path], str(image.path), samples=len(image.captions))
    if len(bad) == len(found):
        raise UserError(f"{annotations} has no caption of a readable image in {images}")
    return [image for image in found if image.path not in bad]


def coco_entries(annotations: Path, _: str | None) -> Iterator[tuple[int | str, str]]:
    """(id, file name) of the images of a COCO annotation file."""
    for image in read_json(annotations)["images"]:
        if (
            isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
            and isinstance(image.get("id"), int | str)
        ):
            yield image["id"], image["file_name"]


def karpathy_entries(annotations: Path, split: str) -> Iterator[tuple[int | str, str]]:
    """(COCO's id, or else the file's own, file name below ``filepath``) of the images of one split."""
    for position, image in enumerate(read_json(annotations)["images"]):
        if isinstance(image, dict) and image.get("split") == split and isinstance(image.get("filename"), str):
            id = image.get("cocoid", image.get("imgid", position))
            yield id, os.path.join(image.get("filepath", ""), image["filename"])


def refuse_duplicates(ids: Iterable[Any], where: Path) -> None:
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{where}: {len(twice)} image(s) come more than once: {some(twice)}; give each once")


def coco_results(captions: dict[int | str, str]) -> list[dict[str, Any]]:
    """Captions by image id in COCO's result format, which its evaluation server and ``COCO.loadRes`` take."""
    return [{"image_id": id, "caption": caption} for id, caption in captions.items()]


def read_coco_results(path: str | Path) -> dict[int | str, str]:
    """Captions by image id from a file in COCO's result format.

    Raises:
        UserError: the file is missing or of another format, or an image has several captions (all are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no results file {path}")
    try:
        entries = [(entry["image_id"], str(entry["caption"])) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, LookupError, TypeError):
        raise UserError(f'{path} is not in COCO\'s result format: expected [{{"image_id", "caption"}}, …]') from None
    refuse_duplicates((id for id, _ in entries), path)
    return dict(entries)
