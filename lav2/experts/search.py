"""A search engine as an expert: the captions of a collection that are most alike an image (V2 paper, sec 4.4)."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lav2.errors import UserError
from lav2.experts.clip import read_lines
from lav2.experts.images import digest

VECTORS, INDEX = "vectors.safetensors", "index.json"


class Encoder(Protocol):
    """Images and texts → unit vectors (D,) and (texts, D); :class:`lav2.experts.clip.Clip` is one."""

    fingerprint: str

    def encode_image(self, image: Image.Image) -> Tensor: ...

    def encode_texts(self, texts: list[str]) -> Tensor: ...


class CaptionSearch:
    """The captions whose vectors have the largest product with the image's: exact search, no approximation.

    The index is built once, kept in ``index`` and built anew when the encoder or the collection is another.

    Args:
        clip: the encoder.
        captions: the collection: a COCO annotation file (``.json``), or a text file with one caption on each line.
        index: the folder of the index: the vectors as safetensors, the captions as json.
        count: how many captions are told.
        name: as the prompt shows it.

    Raises:
        UserError: the collection cannot be read or is empty, or the index is damaged, or its folder holds
            something else.
    """

    def __init__(
        self, clip: Encoder, captions: str | Path, index: str | Path, count: int = 3, name: str = "similar captions"
    ):
        self.clip, self.count, self.name = clip, count, name
        texts = read_collection(Path(captions))
        stamp = digest(clip.fingerprint, texts)
        folder = Path(index)
        if not (folder / INDEX).is_file() or read_index(folder)["stamp"] != stamp:
            if others := sorted({path.name for path in folder.glob("*")} - {INDEX, VECTORS}):
                raise UserError(
                    f"{folder} holds something other than a search index ({others[0]}), and building one anew would "
                    "remove it: set experts.search.index to a folder of its own"
                )
            write_index(folder, stamp, texts, clip.encode_texts(texts))
        self.captions: list[str] = read_index(folder)["captions"]
        try:
            self.vectors = load_file(folder / VECTORS)["vectors"].float()
        except (SafetensorError, OSError, KeyError) as error:
            raise UserError(
                f"the search index in {folder} is damaged ({error}): delete it, it is built again"
            ) from None
        self.fingerprint = digest(stamp, count)

    def search(self, image: Image.Image) -> list[tuple[str, float]]:
        """The ``count`` captions most alike ``image`` with their similarities, the best first."""
        similarities = self.vectors @ self.clip.encode_image(image)
        best = similarities.topk(min(self.count, len(self.captions)))
        return [(self.captions[index], value) for value, index in zip(*(p.tolist() for p in best), strict=True)]

    def __call__(self, image: Image.Image) -> str:
        return " ".join(caption for caption, _ in self.search(image))


def write_index(folder: Path, stamp: str, captions: list[str], vectors: Tensor) -> None:
    """Write an index under another name and rename it: what is there is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    save_file({"vectors": vectors.half().contiguous()}, temporary / VECTORS)
    (temporary / INDEX).write_text(json.dumps({"stamp": stamp, "captions": captions}, ensure_ascii=False))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def read_index(folder: Path) -> dict:
    try:
        content = json.loads((folder / INDEX).read_text())
        return {"stamp": content["stamp"], "captions": content["captions"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the search index in {folder} is damaged ({error}): delete it, it is built again") from None


def read_collection(path: Path) -> list[str]:
    """The different captions in a COCO annotation file or a text file, in their order."""
    texts = read_lines(path)
    if path.suffix == ".json":
        try:
            texts = [entry["caption"].strip() for entry in json.loads("\n".join(texts))["annotations"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path} is no COCO annotation file: expected {{"annotations": [{{"caption": …}}]}}'
            ) from None
    texts = list(dict.fromkeys(filter(None, texts)))
    if not texts:
        raise UserError(f"{path} holds no caption to search")
    return texts
