"""What the benchmarks share: the machine's own limits, and how repeated measurements are summed up."""

import importlib.metadata
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch


def environment(*packages: str) -> dict:
    """The machine and the versions a result was measured with."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    return {
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *packages)},
    }


def matmul_rate(dtype: torch.dtype, inputs: int, outputs: int, tokens: int, seconds: float = 0.5) -> float:
    """Floating-point operations a second of ``(tokens, inputs) @ (inputs, outputs)`` on this machine, now."""
    left, right = torch.randn(tokens, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.nn.functional.linear(left, right)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        torch.nn.functional.linear(left, right)
        count += 1
    return 2 * tokens * inputs * outputs * count / passed


def ratio(ours: Sequence[float], peer: Sequence[float]) -> dict:
    """Of two contestants measured in turns: the summary of the ratios within a turn."""
    return summary([a / b for a, b in zip(ours, peer, strict=True)])


def summary(values: Sequence[float]) -> dict:
    return {name: round(f(values), 3) for name, f in (("median", statistics.median), ("least", min), ("most", max))}
