"""Images a second into training batches: features from the store beside decoding and encoding every image each epoch.

Both go through the training loader and its batches. Random weights in the shape of CLIP ViT-B/32; the photographs of
COCO where ``LAV2_TEST_DATA`` names the folder of real data, otherwise made ones of COCO's usual size. Each repetition
measures one right after the other, so that a busy machine slows both; a ratio is within one repetition.

    python -m benchmarks.features
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.measure import Ratio
from lav2.data import ResumableLoader, Sample, Samples, collate
from lav2.vision import VisionEncoder
from lav2.vision.features import Pixels, compute_features

MODEL = "ViT-B-32"
SIZE = (640, 480)


def run(images: int = 64, batch_size: int = 32, repetitions: int = 5, epochs: int = 20) -> dict:
    """Images a second of each repetition for both, their medians and the ratio's; and of the filling of the store.

    Args:
        images: how many are read; real photographs are at most 69.
        epochs: how often they are read from the store in each repetition, as once would be too short to measure.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths, source = photographs(Path(folder), images)
        weights = Path(folder) / "weights.safetensors"
        logging.disable(logging.WARNING)  # open_clip warns that the model is random, as is meant here
        save_file(open_clip.create_model(MODEL, load_weights=False).visual.state_dict(), weights)
        logging.disable(logging.NOTSET)
        encoder = VisionEncoder(MODEL, weights)
        rng = np.random.default_rng(0)
        texts = [
            Sample(rng.integers(1, 32000, length), np.arange(length) >= 45)
            for length in rng.integers(50, 80, len(paths))
        ]

        def fill() -> None:
            nonlocal store
            store = compute_features(encoder, paths, Path(folder) / "store", refuse)

        store = None
        seconds_to_fill, seconds_to_open = timed(fill), timed(fill)
        stored = ResumableLoader(Samples(texts, paths, store), collate, batch_size)
        pixels = ResumableLoader(Samples(texts, paths, Pixels(encoder.preprocess, paths)), collate, batch_size)

        def read() -> None:
            for _ in range(epochs):
                for batch in stored:
                    assert batch["features"].shape[1:] == (encoder.num_tokens, encoder.width)

        def encode() -> None:
            for batch in pixels:
                batch["features"] = encoder(batch["features"])

        rates: dict[str, list[float]] = {"store": [], "encoder": []}
        for _ in range(repetitions):
            rates["store"].append(epochs * len(paths) / timed(read))
            rates["encoder"].append(len(paths) / timed(encode))
    ratios = [stored / encoded for stored, encoded in zip(rates["store"], rates["encoder"], strict=True)]
    return {
        "model": MODEL,
        "images": len(paths),
        "source": source,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "images_per_second": rates,
        "medians": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "fill_images_per_second": len(paths) / seconds_to_fill,
        "open_seconds": seconds_to_open,
    }


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found."""
    what = f"images a second into training from the store; {found['model']}, {found['images']} images"
    yield Ratio(what, "decoding and encoding each time", found["ratios"])


def photographs(folder: Path, count: int) -> tuple[list[Path], str]:
    """So many image files, and where they come from."""
    if data := os.environ.get("LAV2_TEST_DATA"):
        return sorted(Path(data).glob("coco/*2017/*.jpg"))[:count], "COCO"
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 1))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths, f"made, {SIZE[0]} x {SIZE[1]}"


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def refuse(path: Path, reason: str) -> None:
    raise ValueError(f"{reason}: {path}")


def print_table(results: dict) -> None:
    title = f"{results['model']}, {results['images']} photographs ({results['source']}), {results['threads']} threads"
    table = Table("features", "images/s, median", "smallest", "largest", title=title)
    rows = {"from the store": results["images_per_second"]["store"]}
    rows["decoded and encoded"] = results["images_per_second"]["encoder"]
    for name, rates in rows.items():
        table.add_row(name, *(f"{value:,.1f}" for value in (statistics.median(rates), min(rates), max(rates))))
    table.add_row(
        "ratio", *(f"{value:,.0f}" for value in (results["ratio"], min(results["ratios"]), max(results["ratios"])))
    )
    Console().print(table)


if __name__ == "__main__":
    print_table(run())
