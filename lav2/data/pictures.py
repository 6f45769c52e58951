"""A picture in all the ways in which people have one."""

from pathlib import Path

import numpy as np
from PIL import Image

from lav2.data.images import load_image
from lav2.errors import UserError

Picture = str | Path | Image.Image | np.ndarray


def read_picture(image: Picture) -> Image.Image:
    """The picture that a user gave in any of the ways; as Pillow does, a file's has its name as ``filename``.

    Raises:
        UserError: the file cannot be read, or the array or object is no picture.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"an image is an array of shape {image.shape} and type {image.dtype}; expected (height, width, 3) of "
                "uint8, in RGB"
            )
        return Image.fromarray(image)
    if not isinstance(image, str | Path):
        raise UserError(f"an image is of type {type(image).__name__}; give a path, a PIL image or a numpy array")
    try:
        picture = load_image(Path(image))
    except OSError as error:
        raise UserError(f"cannot read the image {image}: {error}") from None
    picture.filename = str(image)
    return picture
