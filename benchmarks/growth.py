"""How time and memory of a training step grow: with sequence length, batch, prompts and vocabulary.

A random LLaMA of SmolLM2's width with V2's adapter, forward and backward on language instructions, half of the
positions labelled, one thread. Along each axis everything else stays as it is. A slope is that of a straight line
through the logarithms: 1 is proportional, 2 quadratic, 0 constant. Beside the seconds stands the slope of the
floating-point operations that the step needs; beside the peak (of the resident set, above what stands before the first
step, in a process of its own) what is to be expected: activations are proportional to tokens, prompts are few, and
logits are held some rows at a time, however many words there are.

    python -m benchmarks.growth [--axes length vocabulary] [--repetitions 3]
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import torch

from benchmarks.measure import SMOLLM2, Ratio, begin_peak, resident
from benchmarks.training import batch, required_operations, step

LAYERS = 6


@dataclass(frozen=True)
class Case:
    """What a step is of."""

    length: int = 256
    batch: int = 2
    prompt_layers: int = LAYERS
    prompt_length: int = 20
    vocabulary: int = 32000


# axis → (its values, where the others stand, the slope that is to be expected of the peak)
AXES = {
    "length": ((256, 512, 1024, 2048), Case(batch=1), 1.0),
    "batch": ((1, 2, 4, 8), Case(), 1.0),
    "prompt_layers": ((1, 2, 4, 6), Case(prompt_length=320), 0.0),
    "prompt_length": ((20, 80, 320, 1280), Case(), 0.0),
    "vocabulary": ((32000, 64000, 128256), Case(), 0.0),
}


def operations(case: Case, layers: int = LAYERS) -> float:
    """Floating-point operations of a step: the frozen weights', attention's, the head's, and those of the prompts.

    Prompts are read by every token, two products forward and four backward, and pass W_k and W_v once.
    """
    shape = SMOLLM2 | {"num_hidden_layers": layers, "vocab_size": case.vocabulary}
    size = shape["hidden_size"]
    kv_size = size // shape["num_attention_heads"] * shape["num_key_value_heads"]
    tokens = case.batch * (case.length - 1)
    prompts = 6 * 2 * size * tokens * case.prompt_length + 4 * 2 * size * kv_size * case.prompt_length
    return sum(required_operations(shape, case.batch, case.length)) + case.prompt_layers * prompts


def measure(case: Case, repetitions: int, layers: int = LAYERS) -> dict:
    """Seconds of a step in each repetition, and MB of the peak, in this process."""
    from lav2.adapter import adapt
    from lav2.llama import Llama, LlamaConfig
    from lav2.training.loss import response_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=SMOLLM2["hidden_size"],
        num_layers=layers,
        num_heads=SMOLLM2["num_attention_heads"],
        num_kv_heads=SMOLLM2["num_key_value_heads"],
        intermediate_size=SMOLLM2["intermediate_size"],
        max_length=8192,
        tie_embeddings=True,
    )
    adapter = {"visual_layers": 0, "prompt_layers": case.prompt_layers, "prompt_length": case.prompt_length}
    model = adapt(Llama(config).reset_parameters(), adapter).train()

    def steps(length: int):
        tokens, labels = batch({"vocab_size": case.vocabulary}, case.batch, length)
        return step(model, lambda: response_loss(model, {"tokens": tokens, "labels": labels}, "instruction"))

    steps(8)()  # loads the kernels
    forward_and_backward = steps(case.length)
    begin_peak()
    before = resident("VmRSS")
    forward_and_backward()
    peak = (resident("VmHWM") - before) / 2**20
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        forward_and_backward()
        seconds.append(time.process_time() - start)
    return {"seconds": seconds, "peak_mb": round(peak, 1)}


def run(axes: dict[str, tuple[Sequence[int], Case, float]] = AXES, repetitions: int = 3, layers: int = LAYERS) -> dict:
    """All measurements, as json takes them: of each axis its values, their seconds, peaks and operations."""
    results = []
    for name, (values, others, expected) in axes.items():
        cases = [replace(others, **{name: value}) for value in values]
        found = []
        for case in cases:
            print(f"  {name} {getattr(case, name):,}", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found.append(fresh.submit(measure, case, repetitions, layers).result())
        results.append(
            {
                "axis": name,
                "values": list(values),
                "others": {key: value for key, value in asdict(others).items() if key != name},
                "operations": [operations(case, layers) for case in cases],
                "seconds": [one["seconds"] for one in found],
                "peak_mb": [one["peak_mb"] for one in found],
                "expected_slope_of_peak": expected,
            }
        )
    return {"layers": layers, "threads": 1, "repetitions": repetitions, "results": results}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line through the logarithms, by least squares."""
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    middle, height = sum(across) / len(across), sum(up) / len(up)
    over = sum((a - middle) ** 2 for a in across)
    return sum((a - middle) * (b - height) for a, b in zip(across, up, strict=True)) / over


def lines(found: dict) -> Iterator[Ratio]:
    """How much a step grew from the first to the last value of each axis, beside how much it should have.

    The slopes, all log-log, stand in the names.
    """
    for one in found["results"]:
        values = one["values"]
        over = f"with {one['axis'].replace('_', ' ')} {values[0]:,} to {values[-1]:,}"
        turns = list(zip(*one["seconds"], strict=True))  # of each repetition the seconds at all values
        expected = one["operations"][-1] / one["operations"][0]
        measured = sorted(slope(values, turn) for turn in turns)[len(turns) // 2]
        yield Ratio(
            f"time grows {over}, log-log slope {measured:.2f}",
            f"operations, slope {slope(values, one['operations']):.2f}",
            [turn[-1] / turn[0] / expected for turn in turns],
            less_is_better=True,
        )
        peaks, power = one["peak_mb"], one["expected_slope_of_peak"]
        yield Ratio(
            f"peak grows {over}, log-log slope {slope(values, peaks):.2f}",
            f"what is held, slope {power:.0f}",
            [peaks[-1] / peaks[0] / (values[-1] / values[0]) ** power],
            less_is_better=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    print(json.dumps(run({name: AXES[name] for name in asked.axes}, asked.repetitions), indent=2))
