"""How long it takes to load a base model, and how much memory, beside transformers' ``from_pretrained``.

A random LLaMA is written as sharded bfloat16 safetensors and loaded in turn by both, each time in a fresh process. The
clock stops when every weight has been used once: where no cast is needed, transformers leaves the weights in the mapped
file until then and for good, while lav2 copies and checks them. The file is in the page cache, so the disk plays no
part. Memory is the peak of the resident set above what it was after the imports.

    python -m benchmarks.loading [--hidden-size 2048] [--layers 19] [--rounds 3] [--json results.json]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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


def lav2_loader() -> Callable:
    from lav2.llama import load_llama

    return load_llama


def transformers_loader() -> Callable:
    from transformers import LlamaForCausalLM

    return lambda folder, dtype: LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


LOADERS = {"lav2": lav2_loader, "transformers": transformers_loader}
DTYPES = ("bfloat16", "float32")  # as the file has it, and cast


def measure(name: str, folder: str, dtype: str) -> dict:
    """Load the model in ``folder`` once, in this process: seconds, and the peak as a multiple of the loaded model."""
    import torch

    load = LOADERS[name]()
    before = peak_memory()
    start = time.perf_counter()
    parameters = list(load(folder, getattr(torch, dtype)).parameters())
    for parameter in parameters:
        parameter.sum()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": (peak_memory() - before) / sum(parameter.nbytes for parameter in parameters)}


def peak_memory() -> int:
    """The largest resident set that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(call: str, *arguments: object) -> dict:
    """``call`` of this module with ``arguments``, in a process of its own."""
    code = f"import json; from benchmarks.loading import {call}; print(json.dumps({call}(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(hidden_size: int = 2048, layers: int = 19, rounds: int = 3) -> dict:
    """Interleaved rounds: ``{"file_bytes": …, "bfloat16": {"lav2": {"seconds": [one a round], "peak": […]}}, …}``."""
    runs: dict[tuple[str, str], list[dict]] = {(dtype, name): [] for dtype in DTYPES for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        size = in_fresh_process("write_model", folder, hidden_size, layers)["bytes"]
        for _ in range(rounds):
            for (dtype, name), measured in runs.items():
                measured.append(in_fresh_process("measure", name, folder, dtype))
    results: dict = {"file_bytes": size} | {dtype: {} for dtype in DTYPES}
    for (dtype, name), measured in runs.items():
        results[dtype][name] = {kind: [one[kind] for one in measured] for kind in measured[0]}
    return results


def lines(found: dict) -> Iterator:
    """What ``run`` found, beside transformers."""
    from benchmarks.measure import Ratio, ratios

    for dtype in DTYPES:
        ours, theirs = found[dtype]["lav2"], found[dtype]["transformers"]
        for kind, what in (("seconds", "seconds to load"), ("peak", "peak memory while loading")):
            values = ratios(ours[kind], theirs[kind])
            yield Ratio(f"{what} {found['file_bytes'] / 1e9:.2f} GB as {dtype}", "transformers", values, None, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    results = run(options.hidden_size, options.layers, options.rounds)
    table = Table("loaded as", "by", "seconds", "seconds / transformers'", "peak memory / model")
    for dtype in DTYPES:
        peer = statistics.median(results[dtype]["transformers"]["seconds"])
        for name, found in results[dtype].items():
            seconds, peak = (statistics.median(found[kind]) for kind in ("seconds", "peak"))
            table.add_row(dtype, name, f"{seconds:.2f}", f"{seconds / peer:.2f}", f"{peak:.2f}")
    Console().print(f"a LLaMA of {results['file_bytes'] / 1e9:.2f} GB in bfloat16, median of {options.rounds} rounds")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
