"""Features of the frozen encoder, computed once for every image and read from disk ever after."""

import json
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from lav2.data.images import load_image
from lav2.vision.contents import content_hashes
from lav2.vision.filling import fill, parameter
from lav2.vision.shards import ShardReader, Shards

FEATURE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class FeatureStore:
    """Features by image path, memory-mapped: ``store[path]`` is a tensor (tokens, width).

    Every process maps the files by itself when it first reads, so a store can be sent to worker processes.
    """

    def __init__(self, shards: Shards, contents: dict[Path, str]):
        self.folder = shards.folder
        self.rows = {
            str(path): (content, *shards.rows[content]) for path, content in contents.items() if content in shards.rows
        }
        self.reader = ShardReader(shards.folder)

    def __getitem__(self, path: Path) -> Tensor:
        return self.reader.read(*self.rows[str(path)])

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __len__(self) -> int:
        return len(self.rows)


class Pixels:
    """Preprocessed images by path, decoded whenever they are read: for an encoder that trains along.

    ``pixels[path]`` is what the encoder reads, (3, height, width); in the place of a :class:`FeatureStore`.

    Args:
        preprocess: PIL image → (3, height, width), such as ``VisionEncoder.preprocess``.
        paths: images that :func:`lav2.data.images.check_images` found whole.
    """

    def __init__(self, preprocess: Callable, paths: Iterable[Path]):
        self.preprocess, self.paths = preprocess, {str(path) for path in paths}

    def __getitem__(self, path: Path) -> Tensor:
        if path not in self:
            raise KeyError(path)
        return self.preprocess(load_image(path))

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.paths

    def __len__(self) -> int:
        return len(self.paths)


def compute_features(
    encoder,
    paths: Iterable[Path],
    cache_dir: str | Path,
    on_bad: Callable[[Path, str], None],
    dtype: str = "float16",
    batch_size: int = 32,
    num_workers: int = 0,
) -> FeatureStore:
    """The encoder's features of every image, from the store or computed now.

    The store is a folder under ``cache_dir`` for each encoder (``encoder.fingerprint``, the data type it computes in,
    and ``dtype``), and in it the features are found by what the image files hold (:mod:`lav2.vision.contents`): a
    changed image or another encoder never meets stale features, and data sets that share images share their features.
    Several processes may fill a store at once, the ranks of a run as well as different runs: each computes what no
    other is at, and returns when all is there. A process that was killed loses what it had not written, ``SHARD_BYTES``
    at most for each file it was at; the next one goes on from there (:mod:`lav2.vision.shards`).

    Images that cannot be decoded are named to ``on_bad(path, reason)`` and have no features; this is the one pass that
    checks all images. Those already in the store, whole or broken, are not decoded again.

    Args:
        encoder: has ``fingerprint`` (str), ``preprocess`` (PIL image → tensor (3, height, width)), ``num_tokens``,
            ``width``; called with images (batch, 3, height, width) it gives (batch, tokens, width). It runs where its
            parameters are.
        dtype: of the features on disk. ``float16`` rounds by 2^-11 of a value at most (and by 2^-25 below 2^-14) and
            holds values up to 65504; it keeps three more bits than bfloat16, which needs the same space. ``float32``
            keeps what a float32 encoder computes, in twice the space.
        num_workers: processes that decode and preprocess.

    Raises:
        UserError: the disk has no room for the features, they do not fit into ``dtype``, or an image changed meanwhile.
    """
    contents = content_hashes(paths, Path(cache_dir) / "images.json", on_bad)
    images = {content: path for path, content in contents.items()}
    kind = [encoder.fingerprint, str(parameter(encoder).dtype), encoder.num_tokens, encoder.width, dtype]
    shards = Shards(Path(cache_dir) / sha256(json.dumps(kind).encode()).hexdigest()[:16])
    named: set[Path] = set()

    def name_broken() -> None:
        for path, content in contents.items():
            if content in shards.broken and path not in named:
                named.add(path)
                on_bad(path, "broken image")

    name_broken()
    fill(shards, images, encoder, FEATURE_DTYPES[dtype], name_broken, batch_size, num_workers)
    return FeatureStore(shards, contents)
