"""Features of the frozen encoder, computed once for a training run and read from disk ever after."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from lav2.data.images import image_fault, load_image
from lav2.errors import UserError

ARRAY, INDEX = "features.npy", "index.json"


class FeatureStore:
    """Features by image path, memory-mapped: ``store[path]`` is a float16 tensor (tokens, width).

    Every process maps the file by itself when it first reads, so a store can be sent to worker processes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, int] = json.loads((folder / INDEX).read_text())["rows"]
        self._array = None

    @property
    def array(self) -> np.ndarray:
        """All features, float16 (images, tokens, width), read-only."""
        if self._array is None:
            self._array = np.load(self.folder / ARRAY, mmap_mode="r", allow_pickle=False)
        return self._array

    def __getitem__(self, path: Path) -> Tensor:
        return torch.from_numpy(np.array(self.array[self.rows[str(path)]]))

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_array": None}


def compute_features(
    encoder,
    paths: Iterable[Path],
    cache_dir: str | Path,
    on_bad: Callable[[Path, str], None],
    batch_size: int = 32,
    num_workers: int = 0,
) -> FeatureStore:
    """The encoder's features of every image, from the cache or computed now.

    A cache is a folder under ``cache_dir`` named by a hash of ``encoder.fingerprint`` and every image's path, size and
    modification time, so a changed image or another encoder never meets stale features. It is written under another
    name and renamed when complete: what is there is whole. Images that cannot be decoded are named to
    ``on_bad(path, reason)``, each time, and have no features; this is the one pass that checks all images.

    Args:
        encoder: has ``fingerprint`` (str), ``preprocess`` (PIL image → tensor (3, height, width)), ``num_tokens``,
            ``width``; called with images (batch, 3, height, width) it gives (batch, tokens, width). It runs where its
            parameters are.
        num_workers: processes that decode and preprocess.

    Raises:
        UserError: the disk has no room for the features, or they do not fit into float16.
    """
    stamps: list[tuple[str, int, int]] = []
    missing = []
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
            stamps.append((str(path), status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            missing.append(path)
    for path in missing:
        on_bad(path, "missing image")

    key = hashlib.sha256(json.dumps([encoder.fingerprint, stamps]).encode()).hexdigest()[:16]
    folder = Path(cache_dir) / key
    if not (folder / INDEX).is_file():
        _write(encoder, [path for path, _, _ in stamps], folder, on_bad, batch_size, num_workers)
    else:
        for path, reason in json.loads((folder / INDEX).read_text())["bad"].items():
            on_bad(Path(path), reason)
    return FeatureStore(folder)


@torch.no_grad()
def _write(encoder, paths: list[str], folder: Path, on_bad: Callable, batch_size: int, num_workers: int) -> None:
    shape = len(paths), encoder.num_tokens, encoder.width
    size = 2 * int(np.prod(shape, dtype=np.int64))
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"computing features of {shape[0]:,} images: {shape[1]} x {shape[2]} each, {size / 1e6:,.1f} MB in {folder}")
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise UserError(
            f"the image features need {size / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: "
            "set cache_dir to a larger disk, or train on fewer images"
        )
    parameter = next(encoder.parameters(), torch.empty(0))
    rows: dict[str, int] = {}
    bad: dict[str, str] = {}
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        array = np.lib.format.open_memmap(temporary / ARRAY, mode="w+", dtype=np.float16, shape=shape)
        loader = DataLoader(
            paths,
            batch_size=batch_size,
            collate_fn=partial(_decode, encoder.preprocess),
            num_workers=num_workers,
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        for images, faults in track(loader, "image features"):
            for path, reason in faults.items():
                on_bad(Path(path), reason)
            bad |= faults
            if images:
                batch = torch.stack(list(images.values())).to(parameter.device, parameter.dtype)
                features = encoder(batch).to(torch.float16).cpu().numpy()
                if not np.isfinite(features).all():
                    raise UserError(f"the encoder's features of {next(iter(images))} or near do not fit into float16")
                start = len(rows)
                array[start : start + len(features)] = features
                rows |= {path: start + offset for offset, path in enumerate(images)}
        array.flush()
        del array
        (temporary / INDEX).write_text(json.dumps({"encoder": encoder.fingerprint, "rows": rows, "bad": bad}))
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not (folder / INDEX).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(preprocess: Callable, paths: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Preprocessed images by path, and the reasons by path of those that cannot be decoded."""
    images, faults = {}, {}
    for path in paths:
        try:
            images[path] = preprocess(load_image(Path(path)))
        except OSError as error:
            faults[path] = image_fault(error)
    return images, faults
