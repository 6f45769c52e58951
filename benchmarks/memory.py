"""What each way to save memory costs and brings, on the same model and batches: peak memory, time a step, loss.

A random LLaMA is written to disk and trained with V2's adapter for some joint steps, in turn in each way, each time in
fresh processes. Time is a process's own, of one thread. Memory is measured twice: what torch's own allocator hands out
for tensors, which is what ``plan=true`` foretells, and the peak of the resident set, above what it was when a model of
one layer had been trained in the same way; there the C library gives every larger block back at once, so that its gaps
do not count, but the buffers of libraries for products and for messages do. The loss is that of the last timed step:
whatever rounds weights or activations shows there. Two processes have the same batches, so that their losses are a
single process's. With offload on a CPU the shares lie where they lay before: the row says what the way itself costs,
and that it computes the same.

    python -m benchmarks.memory [--hidden-size 1024] [--layers 6] [--steps 4] [--rounds 2] > memory.json
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.loading import in_fresh_process
from benchmarks.measure import Ratio, begin_peak, most_allocated, ratios, resident
from lav2.adapter import AdaptedLlama, AdapterConfig, owned
from lav2.config import DTYPES
from lav2.llama import Llama, load_llama
from lav2.llama.loading import open_checkpoint, read_config
from lav2.tasks import TASKS
from lav2.training.loss import response_loss
from lav2.training.optimizers import TaskOptim, TaskOptimizers
from lav2.training.plan import Planner, Setting, moments
from lav2.training.recomputation import recompute_blocks
from lav2.training.sharding import Sharding, skeleton


@dataclass(frozen=True)
class Way:
    """How the frozen weights are held, and whether activations are recomputed; ``processes`` above 1 is FSDP2."""

    dtype: str = "bfloat16"
    recompute: bool = False
    quantize: str | None = None
    processes: int = 1
    offload: bool = False


PLAIN, SHALLOW = "bfloat16", "one_layer"
WAYS = {
    "float32": Way("float32"),
    PLAIN: Way(),
    "bfloat16, checkpointing": Way(recompute=True),
    "int8, checkpointing": Way(recompute=True, quantize="int8"),
    "nf4, checkpointing": Way(recompute=True, quantize="nf4"),
    "bfloat16, fsdp2 on 2": Way(processes=2),
    "bfloat16, fsdp2 on 2, offload": Way(processes=2, offload=True),
}
ONE = "import json, sys; from benchmarks.memory import *; print(json.dumps(measure(*json.loads(sys.argv[1]))))"
OPTIM = TaskOptim(partial(torch.optim.AdamW, lr=1e-3))
ROWS, LENGTHS, IMAGE_TOKENS, WIDTH = {"caption": 2, "instruction": 2}, {"caption": 64, "instruction": 192}, 49, 512


def measure(name: str, folder: str, steps: int, rank: int, address: str) -> dict:
    """Train in this process, one of the way's: peaks and what the plan says in bytes, seconds a step, last loss."""
    way = WAYS[name]
    torch.set_num_threads(1)
    if way.processes > 1:
        dist.init_process_group("gloo", address, rank=rank, world_size=way.processes)
    most_allocated(step(way, str(Path(folder) / SHALLOW)))
    begin_peak()
    start = resident("VmRSS")
    torch.manual_seed(0)
    started: list[Callable[[], float]] = []

    def start_and_take_two() -> None:
        started.append(step(way, folder))
        for _ in range(2):
            started[0]()

    allocated = most_allocated(start_and_take_two)
    (one,) = started
    times = []
    for _ in range(steps):
        began = time.process_time()
        loss = one()
        times.append(time.process_time() - began)
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    begin_peak()
    for _ in range(2):
        one()
    peak = resident("VmHWM") - start
    if way.processes > 1:
        dist.destroy_process_group()
    with torch.device("meta"):
        bare = AdaptedLlama(Llama(read_config(folder)).to(DTYPES[way.dtype]), AdapterConfig(), WIDTH)
    planner = Planner(bare, WIDTH, IMAGE_TOKENS, LENGTHS, frozenset({"caption"}), moments(OPTIM))
    strategy = "fsdp2" if way.processes > 1 else "single"
    plan = planner.memory(Setting(strategy, way.processes, way.recompute, False, way.quantize, ROWS))
    memory = {"resident": peak, "allocated": allocated, "plan": sum(plan.values())}
    return memory | {"seconds": statistics.median(times), "loss": loss}


def step(way: Way, folder: str) -> Callable[[], float]:
    """A joint step on the model in ``folder``, which gives its loss."""
    dtype, checkpoint = DTYPES[way.dtype], open_checkpoint(folder)
    sharded = way.processes > 1
    llama = skeleton(checkpoint, dtype) if sharded else load_llama(folder, dtype, way.quantize)
    if way.recompute:
        recompute_blocks(llama)
    model = AdaptedLlama(llama, AdapterConfig(), WIDTH).train()
    if sharded:
        strategy = Sharding(offload=way.offload)
        strategy.parallel_devices = [torch.device("cpu")] * way.processes
        names = ("data_parallel", "tensor_parallel")
        strategy._device_mesh = init_device_mesh("cpu", (way.processes, 1), mesh_dim_names=names)
        strategy.shard(model, checkpoint)
    optimizer = TaskOptimizers({task: OPTIM.build(task, owned(model, task)) for task in TASKS})
    torch.manual_seed(1)
    tokens = {task: torch.randint(3, llama.config.vocab_size, (ROWS[task], LENGTHS[task])) for task in TASKS}
    batches = {task: {"tokens": tokens[task], "labels": tokens[task]} for task in TASKS}
    batches["caption"]["features"] = torch.randn(ROWS["caption"], IMAGE_TOKENS, WIDTH)

    def one() -> float:
        loss = sum(response_loss(model, batches[task], task) for task in TASKS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return one


def in_processes(name: str, folder: str, steps: int) -> dict:
    """What :func:`measure` gives in each of the way's processes, the largest of each figure."""
    with tempfile.TemporaryDirectory() as meeting:
        address = f"file://{meeting}/meeting"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", ONE, json.dumps([name, folder, steps, rank, address])],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for rank in range(WAYS[name].processes)
        ]
        said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process of {name!r} failed; what it said stands above")
    found = [json.loads(text.splitlines()[-1]) for text in said]
    return {key: max(one[key] for one in found) for key in found[0]}


def write(folder: str, hidden_size: int, layers: int) -> None:
    """The model to measure in ``folder``, and one of its layers inside."""
    shallow = Path(folder) / SHALLOW
    shallow.mkdir()
    in_fresh_process("write_model", str(shallow), hidden_size, 1)
    in_fresh_process("write_model", folder, hidden_size, layers)


def run(hidden_size: int = 1024, layers: int = 6, steps: int = 4, rounds: int = 2) -> dict:
    """All measurements, as json takes them: for each way its settings and what each round found."""
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write(folder, hidden_size, layers)
        for _ in range(rounds):
            for name in WAYS:
                found[name].append(in_processes(name, folder, steps))
                print(f"  {name} {found[name][-1]}", file=sys.stderr, flush=True)
    return {"threads": 1, "ways": {name: asdict(way) for name, way in WAYS.items()}, "results": found}


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found, beside training with bfloat16 weights in one process; the loss beside float32's."""
    results = {name: {key: [one[key] for one in runs] for key in runs[0]} for name, runs in found["results"].items()}
    plain = results[PLAIN]
    for name, result in results.items():
        allocated = f"what is allocated, {min(result['allocated']) / 1e6:,.0f} MB"
        yield Ratio(f"what the plan says; {name}", allocated, ratios(result["plan"], result["allocated"]))
        yield Ratio(f"resident memory; {name}", allocated, ratios(result["resident"], result["allocated"]))
        if name != PLAIN:
            yield Ratio(f"allocated by a process; {name}", PLAIN, ratios(result["allocated"], plain["allocated"]))
            yield Ratio(f"resident memory of a process; {name}", PLAIN, ratios(result["resident"], plain["resident"]))
            yield Ratio(f"CPU time a step of a process; {name}", PLAIN, ratios(result["seconds"], plain["seconds"]))
        if name != "float32":
            yield Ratio(f"loss; {name}", "float32", ratios(result["loss"], results["float32"]["loss"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    print(json.dumps(run(asked.hidden_size, asked.layers, asked.steps, asked.rounds), indent=2))
