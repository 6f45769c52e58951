"""Fill a folder of shards with the features of images, beside other processes that do the same."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lav2.data.images import load_image
from lav2.errors import UserError
from lav2.vision.contents import content_hash
from lav2.vision.shards import Claim, Shards

SHARD_BYTES = 2**26  # of features in a file: larger ones are fewer, of smaller ones less is lost with a killed process
POLL = 0.5  # seconds between two looks at what other processes have written


def fill(
    shards: Shards,
    images: dict[str, Path],
    encoder,
    dtype: torch.dtype,
    written: Callable[[], None],
    batch_size: int,
    num_workers: int,
) -> None:
    """Compute what ``shards`` lacks of the features of ``images``, given by the hash of what they hold.

    What is missing is cut into shards and batches by order of the hashes, so that a run that goes on where another was
    killed, or works beside it, meets the same batches, and not even the last bit depends on who computes what.

    Args:
        encoder, dtype, batch_size, num_workers: see :func:`lav2.vision.features.compute_features`.
        written: called when a shard has been written, and at the end.
    """
    missing = sorted(content for content in images if content not in shards)
    if not missing:
        return
    size = encoder.num_tokens * encoder.width * dtype.itemsize  # bytes of an image's features
    check_room(shards.folder, len(images), len(missing), size, f"{encoder.num_tokens} x {encoder.width} {dtype}")
    shards.sweep()
    length = batch_size * max(1, SHARD_BYTES // (batch_size * size))
    parts = [missing[start : start + length] for start in range(0, len(missing), length)]
    with Progress(disable=rank_zero_only.rank != 0) as progress:
        bar = progress.add_task("image features", total=len(missing))
        while parts:
            claims = Claims(shards, parts)
            try:
                for batch in decoded(claims.batches(batch_size), images, encoder.preprocess, num_workers):
                    work = claims.held[0]
                    work.features |= features_of(batch, images, encoder, dtype)
                    work.broken += batch.broken
                    progress.advance(bar, len(batch.whole) + len(batch.broken))
                    if len(work.features) + len(work.broken) == len(work.contents):
                        shards.write(work.claim, work.features, work.broken)
                        claims.held.popleft()
                        progress.update(bar, completed=sum(content in shards for content in missing))
                        written()
            finally:
                claims.release()
            if claims.elsewhere == parts:  # others are at all that is left
                time.sleep(POLL)
            parts = claims.elsewhere
    written()


def check_room(folder: Path, images: int, missing: int, size: int, shape: str) -> None:
    """Say what the features take on disk, and refuse if it cannot hold them."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    needed, free = missing * size, shutil.disk_usage(existing).free
    rank_zero_only(print)(
        f"image features, {shape.replace('torch.', '')} an image: {images - missing:,} of {images:,} images are done, "
        f"the others take {needed / 1e6:,.1f} MB in {folder} ({free / 1e6:,.0f} MB free)"
    )
    if needed > free:
        raise UserError(
            f"the image features need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
            "set data.cache_dir to a larger disk, or train on fewer images"
        )


@dataclass
class Work:
    """A shard that this process is at: of which images, and what has become of them so far."""

    claim: Claim
    contents: list[str]
    features: dict[str, Tensor] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Claims:
    """One round through the shards that are to be written, ``parts``, each a list of hashes.

    Attributes:
        held: the shards that this process is at, in order; several, as decoding runs ahead of the encoder.
        elsewhere: parts that other processes are at.
    """

    def __init__(self, shards: Shards, parts: list[list[str]]):
        self.shards, self.parts = shards, parts
        self.held: deque[Work] = deque()
        self.elsewhere: list[list[str]] = []

    def batches(self, batch_size: int) -> Iterator[list[str]]:
        """What no other process is at."""
        for part in self.parts:
            self.shards.refresh()
            contents = [content for content in part if content not in self.shards]
            if not contents:
                continue
            claim = self.shards.claim(contents)
            if claim is None:
                self.elsewhere.append(part)
                continue
            self.held.append(Work(claim, contents))
            for start in range(0, len(contents), batch_size):
                yield contents[start : start + batch_size]

    def release(self) -> None:
        for work in self.held:
            work.claim.release()


class Batch(NamedTuple):
    """Hashes of images that were decoded, with their pixels (images, 3, height, width); hashes of the others."""

    whole: list[str]
    pixels: Tensor | None
    broken: list[str]
    changed: list[str]


def decoded(
    batches: Iterator[list[str]], images: dict[str, Path], preprocess: Callable, num_workers: int
) -> Iterator[Batch]:
    first = next(batches, None)
    if first is not None:  # else the worker processes would start for nothing
        yield from DataLoader(
            Images(images, preprocess),
            batch_sampler=chain([first], batches),
            collate_fn=collate,
            num_workers=num_workers,
            generator=torch.Generator(),  # else the loader draws from the global one
        )


class Images(Dataset):
    """Images by the hash of what they hold, as (hash, fault, preprocessed pixels); one of the latter two is None."""

    def __init__(self, paths: dict[str, Path], preprocess: Callable):
        self.paths, self.preprocess = paths, preprocess

    def __getitem__(self, content: str) -> tuple[str, str | None, Tensor | None]:
        try:
            data = self.paths[content].read_bytes()
        except OSError:
            return content, "changed", None
        if content_hash(data) != content:
            return content, "changed", None
        try:
            return content, None, self.preprocess(load_image(BytesIO(data)))
        except OSError:
            return content, "broken", None


def collate(items: list[tuple[str, str | None, Tensor | None]]) -> Batch:
    whole, broken, changed = (
        [content for content, fault, _ in items if fault == wanted] for wanted in (None, "broken", "changed")
    )
    pixels = [pixels for _, _, pixels in items if pixels is not None]
    return Batch(whole, torch.stack(pixels) if pixels else None, broken, changed)


def parameter(encoder) -> Tensor:
    """A parameter of the encoder, which says where it runs and in which data type."""
    return next(encoder.parameters(), torch.empty(0))


@torch.no_grad()
def features_of(batch: Batch, images: dict[str, Path], encoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """The features (tokens, width) of a batch's images by their hashes."""
    if batch.changed:
        raise UserError(f"{images[batch.changed[0]]} has changed since the run began: start it again")
    if batch.pixels is None:
        return {}
    like = parameter(encoder)
    features = encoder(batch.pixels.to(like.device, like.dtype)).to(dtype).cpu().contiguous()
    if not torch.isfinite(features).all():
        raise UserError(
            f"the encoder's features of {images[batch.whole[0]]} or near do not fit into "
            f"{str(dtype).removeprefix('torch.')}: set data.feature_dtype=float32, or check vision.weights"
        )
    return dict(zip(batch.whole, features, strict=True))
