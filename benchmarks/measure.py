"""What the benchmarks share: the machine's own limits, and how repeated measurements are summed up."""

import ctypes
import gc
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

FIGURES = Path("outputs/benchmarks")
SMOLLM2 = {  # the shape of SmolLM2-135M, by the names of transformers
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Ratio:
    """A line of the results: ``what`` was measured, ``beside`` what, and the ratios within each turn.

    ``target`` is a number that the median must reach or, where less is better, stay below; None where there is none.
    """

    what: str
    beside: str
    values: Sequence[float]
    target: float | None = None
    less_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median <= self.target if self.less_is_better else self.median >= self.target


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


class Gathered(TorchDispatchMode):
    """Counts ``bytes`` that this process gathers from all processes, its own share among them."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.c10d._allgather_base_.default:
            self.bytes += arguments[0].nbytes
        return function(*arguments, **(keywords or {}))


def begin_peak() -> None:
    """From now on ``VmHWM`` counts anew; what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes of tensors that ``work`` holds at once, by the record of torch's own allocator."""
    gc.collect()  # what was left before must not be freed, and counted, in between
    with profile(profile_memory=True) as record:
        work()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def matmul_rate(dtype: torch.dtype, inputs: int, outputs: int, tokens: int, seconds: float = 0.5) -> float:
    """Floating-point operations a second of ``(tokens, inputs) @ (inputs, outputs)`` on this machine, now."""
    left, right = torch.randn(tokens, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.nn.functional.linear(left, right)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        torch.nn.functional.linear(left, right)
        count += 1
    return 2 * tokens * inputs * outputs * count / passed


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Of two contestants measured in turns: their ratio within each turn."""
    return [a / b for a, b in zip(ours, peer, strict=True)]
