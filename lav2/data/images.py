"""Images as they come: named by data files, readable or not."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image
from rich.progress import track

from lav2.data.examples import Example


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


def check_images(paths: Sequence[Path], on_bad: Callable[[Path, str], None]) -> None:
    """Decode every image once; ``on_bad(path, reason)`` for each that cannot be."""
    for path in track(paths, "checking images"):
        try:
            load_image(path)
        except OSError as error:
            on_bad(path, image_fault(error))


def image_fault(error: OSError) -> str:
    """The reason in :class:`Problems` for what :func:`load_image` raised."""
    return "missing image" if isinstance(error, FileNotFoundError) else "broken image"


def image_path(folder: str | Path, name: str) -> Path:
    """Where the image is that a data file calls ``name``, a path from ``folder``: the same for all its spellings."""
    return _image_path(os.path.abspath(folder), name)


@lru_cache(maxsize=2**20)  # the captions of an image share one path: making one and its hash takes its time
def _image_path(folder: str, name: str) -> Path:
    return Path(os.path.normpath(os.path.join(folder, name)))


def is_web_address(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def one_key_for_each_image(examples: Sequence[Example]) -> list[Example]:
    """The examples, those of one image with one key, even if data files name the image differently."""
    keys: dict[Path, str] = {}
    return [
        example
        if example.image is None or keys.setdefault(example.image, example.key) == example.key
        else replace(example, key=keys[example.image])
        for example in examples
    ]
