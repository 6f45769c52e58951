"""Reference captions by COCO image id, from COCO's annotation files and from Karpathy's; captions in COCO's result
format."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.captions import CaptionSource, read_captions
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
    if format == "karpathy":
        found = read_karpathy(annotations, images, split, problems)
    else:
        found = read_coco(annotations, images, problems)
    found = [image for image in found if image.captions]
    refuse_duplicates((image.id for image in found), annotations)
    bad: dict[Path, str] = {}
    check_images([image.path for image in found], bad.__setitem__)
    for image in found:
        if image.path in bad:
            problems.add(bad[image.path], str(image.path), samples=len(image.captions))
    if len(bad) == len(found):
        raise UserError(f"{annotations} has no caption of a readable image in {images}")
    return [image for image in found if image.path not in bad]


def read_coco(annotations: Path, images: Path, problems: Problems) -> list[ReferencedImage]:
    """The images of a COCO annotation file with their captions."""
    captions: dict[Path, list[str]] = {}
    for example in read_captions([CaptionSource(annotations, images)], problems):
        captions.setdefault(example.image, []).append(example.response)
    entries = [
        (entry["id"], entry["file_name"])
        for entry in json.loads(annotations.read_text(encoding="utf-8-sig"))["images"]
        if isinstance(entry, dict)
        and isinstance(entry.get("file_name"), str)
        and isinstance(entry.get("id"), int | str)
    ]
    refuse_duplicates((id for id, _ in entries), annotations)
    refuse_duplicates((name for _, name in entries), annotations)
    return [
        ReferencedImage(id, name, path, captions.get(path, []))
        for id, name in entries
        for path in [Path(os.path.normpath(images.absolute() / name))]
    ]


def read_karpathy(annotations: Path, images: Path, split: str, problems: Problems) -> list[ReferencedImage]:
    """The images of one split of Karpathy's ``dataset_coco.json``, which lie at ``<filepath>/<filename>``.

    Raises:
        UserError: the file is of another format, or has no such split.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8-sig"))
        splits = Counter(entry["split"] for entry in content["images"])
        entries = [entry for entry in content["images"] if entry["split"] == split]
        found = [
            ReferencedImage(
                entry["cocoid"],
                name := os.path.join(entry.get("filepath", ""), entry["filename"]),
                Path(os.path.normpath(images.absolute() / name)),
                [sentence["raw"].strip() for sentence in entry["sentences"]],
            )
            for entry in entries
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{annotations} is no Karpathy file such as dataset_coco.json: expected "
            '{"images": [{"split", "filepath", "filename", "cocoid", "sentences": [{"raw"}]}]}'
        ) from None
    if not entries:
        raise UserError(f"{annotations} has no split {split!r}; it has {', '.join(map(str, splits))}")
    problems.total += sum(len(image.captions) for image in found)
    for image in found:
        for place, caption in enumerate(image.captions):
            if not caption:
                problems.add("empty caption", f"{annotations.name} image {image.id} sentence {place}")
        image.captions = list(filter(None, image.captions))
    return found


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
