"""What each way to save memory costs and brings, on the same model and batches: peak memory, time a step, loss.

A random LLaMA is written to disk and trained with V2's adapter for some joint steps, in turn in each way, each time in
a fresh process. Memory is the peak of the resident set above what it was after the imports, with the code of kernels
that are loaded at their first use and the gaps of the C library's allocator, beside the bytes of tensors that
``plan=true`` says; time is the process's own, of one thread, and the first step is left out. The loss is
that of the last step: whatever rounds weights or activations shows there.

    python -m benchmarks.memory [--hidden-size 1024] [--layers 6] [--steps 4] [--rounds 2] [--json results.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

from benchmarks.loading import in_fresh_process, peak_memory

# Nothing heavy is imported above: a process starts with the peak of the one that started it.

WAYS = {  # name → (dtype of the frozen weights, activation checkpointing, quantized)
    "float32": ("float32", False, None),
    "bfloat16": ("bfloat16", False, None),
    "bfloat16, checkpointing": ("bfloat16", True, None),
    "int8, checkpointing": ("bfloat16", True, "int8"),
    "nf4, checkpointing": ("bfloat16", True, "nf4"),
}
ROWS, LENGTHS, IMAGE_TOKENS, WIDTH = {"caption": 2, "instruction": 2}, {"caption": 64, "instruction": 192}, 49, 512


def measure(way: str, folder: str, steps: int) -> dict:
    """Train in this process: peak bytes, what the plan says, seconds a step, last loss."""
    from functools import partial

    import torch

    from lav2.adapter import AdaptedLlama, AdapterConfig, owned
    from lav2.config import DTYPES
    from lav2.llama import Llama, load_llama
    from lav2.tasks import TASKS
    from lav2.training.loss import response_loss
    from lav2.training.optimizers import TaskOptim, TaskOptimizers
    from lav2.training.plan import Planner, Setting, moments
    from lav2.training.recomputation import recompute_blocks

    torch.set_num_threads(1)
    name, recompute, quantize = WAYS[way]
    if quantize:
        import torchao.quantization  # noqa: F401
    start = peak_memory()
    torch.manual_seed(0)
    llama = load_llama(folder, DTYPES[name], quantize)
    if recompute:
        recompute_blocks(llama)
    model = AdaptedLlama(llama, AdapterConfig(), WIDTH).train()
    optim = TaskOptim(partial(torch.optim.AdamW, lr=1e-3))
    optimizer = TaskOptimizers({task: optim.build(task, owned(model, task)) for task in TASKS})
    times = []
    tokens = {task: torch.randint(3, llama.config.vocab_size, (ROWS[task], LENGTHS[task])) for task in TASKS}
    features = torch.randn(ROWS["caption"], IMAGE_TOKENS, WIDTH)
    batches = {task: {"tokens": tokens[task], "labels": tokens[task]} for task in TASKS}
    batches["caption"]["features"] = features
    for _ in range(steps):
        began = time.process_time()
        loss = sum(response_loss(model, batches[task], task) for task in TASKS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - began)
        last = loss.item()
        del loss
    peak = peak_memory() - start
    with torch.device("meta"):
        bare = AdaptedLlama(Llama(llama.config).to(DTYPES[name]), AdapterConfig(), WIDTH)
    planner = Planner(bare, WIDTH, IMAGE_TOKENS, LENGTHS, frozenset({"caption"}), moments(optim))
    plan = planner.memory(Setting("single", 1, recompute, False, quantize, ROWS))
    return {"bytes": peak, "plan": sum(plan.values()), "seconds": statistics.median(times[1:]), "loss": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # way, folder: what a fresh process does
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.steps)))
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        again = [sys.executable, "-m", "benchmarks.memory"]
        in_fresh_process("write_model", folder, arguments.hidden_size, arguments.layers)
        for _ in range(arguments.rounds):
            for way in WAYS:
                command = [*again, "--steps", str(arguments.steps), "--measure", way, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(way, found[way][-1], file=sys.stderr)
    results = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()
    }
    plain = results["bfloat16"]
    table = Table("frozen weights", "peak MB", "× plain", "plan MB", "s a step", "× plain", "last loss", "− float32's")
    for way, row in results.items():
        table.add_row(
            way,
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['bytes'] / plain['bytes']:.2f}",
            f"{row['plan'] / 1e6:,.0f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / plain['seconds']:.2f}",
            f"{row['loss']:.4f}",
            f"{row['loss'] - results['float32']['loss']:+.4f}",
        )
    Console(width=120).print(table)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
