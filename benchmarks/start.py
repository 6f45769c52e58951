"""What a training run pays besides its steps: padding in its batches, and the time until it has begun.

Padding: of all places in an epoch's batches the share that holds no token, in the loader's order, which groups samples
of similar length, and in a random one. The lengths are those of Alpaca's instructions in LLaMA's tokens where
``LAV2_TEST_DATA`` names the folder of real data, otherwise those of the embedded world's in the demo's.

Start: ``train.py experiment=demo`` with one step and no validation, from the start of the process to its end, beside
the import of torch and lightning alone, in turns. World and features are drawn before, by a run that does not count.

    python -m benchmarks.start
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Ratio, ratios

ROOT = Path(__file__).parents[1]
WORLD = ("data.training=200", "data.held_out=20", "data.instruction_count=400")  # small: drawing it does not count
ONE_STEP = ("trainer.max_steps=1", "trainer.limit_val_batches=0")


def run(batch_sizes: tuple[int, ...] = (4, 16, 64), epochs: int = 3, repetitions: int = 5) -> dict:
    """Shares of padding by batch size, one an epoch; and seconds of each repetition's starts."""
    source, lengths = instruction_lengths()
    padding = {
        batch_size: {
            "grouped": [padded_share(lengths, grouped(lengths, batch_size, epoch)) for epoch in range(epochs)],
            "random": [padded_share(lengths, shuffled(lengths, batch_size, epoch)) for epoch in range(epochs)],
        }
        for batch_size in batch_sizes
    }
    return {
        "lengths": {"source": source, "samples": len(lengths), "mean": lengths.mean(), "longest": int(lengths.max())},
        "padding": {str(size): found for size, found in padding.items()},
        "seconds": starts(repetitions),
    }


def instruction_lengths() -> tuple[str, np.ndarray]:
    """Where they come from, and the lengths in tokens of encoded instructions."""
    from lav2.data import Problems, Turn, choose_template, encode, read_instructions
    from lav2.demo.language import instructions
    from lav2.demo.world import sample_scenes
    from lav2.llama import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        if data := os.environ.get("LAV2_TEST_DATA"):
            source, template = "Alpaca", "alpaca"
            file = Path(data) / "instructions" / "alpaca_gpt4_700.json"
            tokenizer = load_tokenizer(Path(data) / "tokenizer" / "llama_tokenizer.model")
        else:
            source, template = "the embedded world", "short"
            file = Path(folder) / "instructions.json"
            file.write_text(json.dumps(instructions(sample_scenes(1000, 0), 4000, 0)))
            tokenizer = load_tokenizer(ROOT / "lav2" / "demo" / "weights" / "llama" / "tokenizer.model")
        examples = read_instructions([file], Problems("instructions"))
    template = choose_template(template, tokenizer)
    rows = [template.render([Turn(one.instruction, one.input, one.response)]) for one in examples]
    return source, np.array([len(encode(tokenizer, row, 2048).tokens) for row in rows])


def grouped(lengths: np.ndarray, batch_size: int, epoch: int) -> list[np.ndarray]:
    """The batches of the training loader."""
    from lav2.data.loader import epoch_batches

    return epoch_batches(lengths, batch_size, 0, epoch)


def shuffled(lengths: np.ndarray, batch_size: int, epoch: int) -> list[np.ndarray]:
    """Batches in a random order."""
    order = np.random.default_rng(epoch).permutation(len(lengths))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Of all places in the batches, the share without a token."""
    places = sum(len(batch) * lengths[batch].max() for batch in batches)
    return float(1 - lengths.sum() / places)


def starts(repetitions: int) -> dict[str, list[float]]:
    """Seconds of a run of one step, and of the imports alone, in turns."""
    seconds: dict[str, list[float]] = {"imports": [], "run": []}
    with tempfile.TemporaryDirectory() as folder:
        own = (f"data.folder={folder}/world", f"data.cache_dir={folder}/features")
        commands = {
            "imports": [sys.executable, "-c", "import torch, lightning"],
            "run": [sys.executable, ROOT / "train.py", "experiment=demo", *WORLD, *ONE_STEP, *own],
        }
        for turn in range(repetitions + 1):  # the first draws the world, and is left out
            for name, command in commands.items():
                command = [*command, f"hydra.run.dir={folder}/{turn}"] if name == "run" else command
                start = time.perf_counter()
                subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found: padding beside a random order's, a start beside the imports'."""
    lengths = found["lengths"]
    for size, shares in found["padding"].items():
        means = {order: sum(values) / len(values) for order, values in shares.items()}
        yield Ratio(
            f"padding, {means['grouped']:.1%} of a batch of {size}; {lengths['samples']:,} of {lengths['source']}",
            f"a random order, {means['random']:.1%}",
            ratios(shares["grouped"], shares["random"]),
            less_is_better=True,
        )
    yield Ratio(
        "seconds from the start of train.py to the end of a run of one step",
        "import torch, lightning",
        ratios(found["seconds"]["run"], found["seconds"]["imports"]),
        less_is_better=True,
    )


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
