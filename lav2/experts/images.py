"""Images as experts see them, and their answers kept by what an image shows."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lav2.data.pictures import Picture, read_picture


def open_image(picture: Picture) -> Image.Image:
    """The picture in RGB. Its ``filename`` is that of the file it came from, empty where there is none.

    Raises:
        UserError: the file cannot be read, or it is no picture.
    """
    image = read_picture(picture)
    rgb = image.convert("RGB")
    rgb.filename = getattr(image, "filename", "")
    return rgb


def image_key(image: Image.Image) -> str:
    """32 hex digits of what the image shows: its size and its RGB pixels, whatever file they came from."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()[:32]


def digest(*parts: object) -> str:
    """32 hex digits of settings, by their ``repr``, and of weights, given as a state dict."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Mapping) and all(isinstance(value, Tensor) for value in part.values()):
            for name, tensor in sorted(part.items()):
                total.update(name.encode())
                total.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()[:32]


class AnswerCache:
    """Experts' answers by image: in memory as long as the expert lives and, given a ``folder``, on disk.

    On disk are the answers of experts with a ``fingerprint`` only: of others it is not known what they depend on. An
    expert that goes ``by_name`` is asked each time, for one picture may have several names.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder and Path(folder)

    def get(self, expert, key: str) -> str | None:
        """The answer of ``expert`` about the image ``key``, if there is one."""
        if getattr(expert, "by_name", False):
            return None
        text = memory(expert).get(key)
        path = self.path(expert, key)
        if text is None and path is not None and path.is_file():
            text = memory(expert)[key] = path.read_text(encoding="utf-8")
        return text

    def put(self, expert, key: str, text: str) -> None:
        memory(expert)[key] = text
        path = self.path(expert, key)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent)  # renamed when complete: what is there is whole
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)

    def path(self, expert, key: str) -> Path | None:
        fingerprint = getattr(expert, "fingerprint", None)
        return self.folder / digest(fingerprint)[:16] / f"{key}.txt" if self.folder and fingerprint else None


def memory(expert) -> dict[str, str]:
    """What ``expert`` has said, by image; kept on itself, as functools.cached_property keeps values."""
    return vars(expert).setdefault("_answers", {})
