"""How long it takes to load a base model, and how much memory, beside transformers' ``from_pretrained``.

A random LLaMA is written as sharded bfloat16 safetensors and loaded in turn by both, each time in a fresh process. The
clock stops when every weight has been used once, since transformers leaves weights in the mapped file until then; the
file is in the page cache by then, so that the disk plays no part. Memory is the peak of the resident set above what it
was after the imports.

    python -m benchmarks.loading [--hidden-size 2048] [--layers 10] [--rounds 3] [--json results.json]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Nothing heavy is imported above: a process starts with the peak of the one that started it.


def write_model(folder: str, hidden_size: int, layers: int) -> dict:
    """A random LLaMA of Hugging Face's format in ``folder``, a shard for each layer."""
    import torch
    from safetensors.torch import save_file

    from lav2.llama import Llama, LlamaConfig
    from lav2.llama.hugging_face import their_name
    from lav2.llama.hugging_face_config import config_json

    config = LlamaConfig(
        vocab_size=hidden_size * 8,
        hidden_size=hidden_size,
        num_layers=layers,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
        intermediate_size=hidden_size * 11 // 4,
    )
    (Path(folder) / "config.json").write_text(json.dumps(config_json(config) | {"torch_dtype": "bfloat16"}))
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Llama(config).named_parameters()}
    shards: dict[str, dict] = {}
    for name, shape in shapes.items():
        shard = name.split(".")[1] if name.startswith("layers.") else "outer"
        shards.setdefault(f"model-{shard}.safetensors", {})[their_name(name)] = shape
    for file, tensors in shards.items():
        random = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in tensors.items()}
        save_file(random, Path(folder) / file, metadata={"format": "pt"})
    places = {name: file for file, tensors in shards.items() for name in tensors}
    size = 2 * sum(shape.numel() for shape in shapes.values())
    index = Path(folder) / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return {"bytes": size}


def lav2_loader() -> Callable[[str], object]:
    import torch

    from lav2.llama import load_llama

    return lambda folder: load_llama(folder, torch.bfloat16)


def transformers_loader() -> Callable[[str], object]:
    import torch
    from transformers import LlamaForCausalLM

    return lambda folder: LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


LOADERS = {"lav2": lav2_loader, "transformers": transformers_loader}


def measure(name: str, folder: str) -> dict:
    """Load the model in ``folder`` once, in this process: seconds and bytes."""
    load = LOADERS[name]()
    before = peak_memory()
    start = time.perf_counter()
    for parameter in load(folder).parameters():
        parameter.sum()
    return {"seconds": time.perf_counter() - start, "bytes": peak_memory() - before}


def peak_memory() -> int:
    """The largest resident set that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(call: str, *arguments: object) -> dict:
    """``call`` of this module with ``arguments``, in a process of its own."""
    code = f"import json; from benchmarks.loading import {call}; print(json.dumps({call}(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(hidden_size: int, layers: int, rounds: int) -> dict:
    """The medians of ``rounds`` interleaved rounds: ``{"model_bytes": …, "lav2": {"seconds", "peak"}, …}``.

    ``peak`` is a multiple of the model's size.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = in_fresh_process("write_model", folder, hidden_size, layers)["bytes"]
        found: dict[str, list[dict]] = {name: [] for name in LOADERS}
        for _ in range(rounds):
            for name, measured in found.items():
                measured.append(in_fresh_process("measure", name, folder))
    return {"model_bytes": size} | {
        name: {
            "seconds": statistics.median(one["seconds"] for one in measured),
            "peak": statistics.median(one["bytes"] for one in measured) / size,
        }
        for name, measured in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    results = run(options.hidden_size, options.layers, options.rounds)
    table = Table("", "seconds", "peak memory / model", "seconds / transformers'")
    for name in LOADERS:
        seconds, peak = results[name]["seconds"], results[name]["peak"]
        table.add_row(name, f"{seconds:.2f}", f"{peak:.2f}", f"{seconds / results['transformers']['seconds']:.2f}")
    Console().print(f"a LLaMA of {results['model_bytes'] / 1e9:.2f} GB in bfloat16, {options.rounds} rounds")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
