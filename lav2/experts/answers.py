"""Ready answers: what another program, or a person, has said about images (V2 paper, sec 4.4)."""

import json
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from lav2.errors import UserError
from lav2.experts.boxes import describe_boxes
from lav2.experts.clip import read_lines
from lav2.experts.images import image_key


class ReadyAnswers:
    """Texts read from a file with one json object a line: ``{"image": "cat.jpg", "text": "a cat on a mat"}``.

    ``image`` is a file's name, without its folder, or :func:`lav2.experts.image_key` of what the image shows. The text
    may be a list of texts, or of objects ``{"category": "person", "bbox": [left, top, right, bottom]}`` with shares of
    the width and height, which :func:`lav2.experts.boxes.describe_boxes` says.

    Args:
        file: the json lines.
        field: where the text stands.
        name: as the prompt shows it.

    Raises:
        UserError: the file cannot be read, or a line of it; and, asked about an image, that it tells nothing of it.
    """

    by_name = True

    def __init__(self, file: str | Path, field: str = "text", name: str = "notes"):
        self.file, self.name = Path(file), name
        self.texts: dict[str, str] = {}
        for number, line in enumerate(read_lines(file), start=1):
            try:
                entry = json.loads(line)
                image, text = PurePath(entry["image"]).name, as_text(entry[field])
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{file}, entry {number}: expected an object with 'image' and {field!r}") from None
            if image in self.texts:
                raise UserError(f"{file}, entry {number}: {image} has an answer already; names must differ")
            self.texts[image] = text

    def __call__(self, image: Image.Image) -> str:
        filename = PurePath(getattr(image, "filename", "")).name
        for key in (filename, image_key(image)):
            if key in self.texts:
                return self.texts[key]
        raise UserError(f"{self.file} tells nothing of {filename or 'this image'}")


def as_text(value: Any) -> str:
    """A text as it is, texts one after another, boxes in words."""
    if isinstance(value, str):
        return value.strip()
    if value and isinstance(value[0], dict):
        return describe_boxes((box["category"], tuple(box["bbox"])) for box in value)
    return " ".join(text.strip() for text in value)
