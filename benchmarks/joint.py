"""A joint step of lav2 (V2 paper, sec 4.2) beside its tasks' steps alone, and one pass with both tasks beside two.

The weights are random, in the shape of SmolLM2-135M. Times are of its first 8 layers: CPU time of one thread, in turns
within one process. Bytes are of all 30 layers; every step gathers as many, whatever its batches. An image is 50
features of width 768; half of the positions carry labels.

    python -m benchmarks.joint [--repetitions 7]
"""

import argparse
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.multiprocessing import get_context, spawn

from benchmarks.measure import SMOLLM2, Gathered, Ratio, environment, ratios
from lav2.adapter import AdaptedLlama, adapt
from lav2.data.tokens import IGNORE
from lav2.llama import Llama, LlamaConfig
from lav2.tasks import TASKS
from lav2.training.loss import labelled_tokens, response_loss, response_losses
from lav2.training.sharding import Sharding

SHAPE = LlamaConfig(
    vocab_size=SMOLLM2["vocab_size"],
    hidden_size=SMOLLM2["hidden_size"],
    num_layers=SMOLLM2["num_hidden_layers"],
    num_heads=SMOLLM2["num_attention_heads"],
    num_kv_heads=SMOLLM2["num_key_value_heads"],
    intermediate_size=SMOLLM2["intermediate_size"],
    max_length=2048,
    tie_embeddings=SMOLLM2["tie_word_embeddings"],
)
TIMED_LAYERS = 8
FEATURES = (50, 768)
ADAPTER = {"projector": {"width": 72, "heads": 4}}  # an eighth as wide as the model, as the paper's is
CASES = (  # the dtype, and the caption's length beside instructions of 256 tokens
    ("bfloat16", 32),
    ("bfloat16", 256),
    ("float32", 32),
)
Batches = dict[str, dict[str, Tensor]]


def adapted(layers: int, dtype: torch.dtype) -> AdaptedLlama:
    torch.manual_seed(0)
    llama = Llama(replace(SHAPE, num_layers=layers)).reset_parameters().to(dtype)
    return adapt(llama, ADAPTER, feature_width=FEATURES[1]).train()


def draw(sizes: dict[str, tuple[int, int]]) -> Batches:
    """A batch of each task, (rows, tokens) as ``sizes`` say; captions have images."""
    torch.manual_seed(1)
    batches = {}
    for task, (rows, length) in sizes.items():
        tokens = torch.randint(SHAPE.vocab_size, (rows, length))
        labels = torch.where(torch.arange(length) < length // 2, IGNORE, tokens)
        batches[task] = {"tokens": tokens, "labels": labels}
    batches["caption"]["features"] = torch.randn(sizes["caption"][0], *FEATURES)
    return batches


def in_two_passes(model: AdaptedLlama, batches: Batches) -> list[Tensor]:
    return [response_loss(model, rows, task) for task, rows in batches.items()]


def in_one_pass(model: AdaptedLlama, batches: Batches) -> list[Tensor]:
    counts = {task: labelled_tokens(rows) for task, rows in batches.items()}
    return [*response_losses(model, batches, counts).values()]


def step(model: AdaptedLlama, losses_of, batches: Batches) -> float:
    """Forward, backward, no optimizer: the summed loss."""
    for parameter in model.adapter.parameters():
        parameter.grad = None
    loss = torch.stack(losses_of(model, batches)).sum()
    loss.backward()
    return loss.item()


def times(dtype: str, caption_length: int, repetitions: int) -> dict:
    """CPU seconds of a joint step in two passes and in one, and of each task's step, in turns."""
    sizes = {"caption": (4, caption_length), "instruction": (4, 256)}
    torch.set_num_threads(1)
    model, batches = adapted(TIMED_LAYERS, getattr(torch, dtype)), draw(sizes)
    contestants = {"two_passes": (in_two_passes, batches), "one_pass": (in_one_pass, batches)}
    contestants |= {task: (in_two_passes, {task: batches[task]}) for task in TASKS}
    losses = {name: step(model, *contestant) for name, contestant in contestants.items()}  # also warms up
    assert losses["one_pass"] == losses["two_passes"], losses
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions):
        order = list(contestants)
        for name in order[turn % 4 :] + order[: turn % 4]:  # so that none always follows the same other
            start = time.process_time()
            step(model, *contestants[name])
            seconds[name].append(time.process_time() - start)
    return {"dtype": dtype, "sizes": sizes, "losses": losses, "cpu_seconds": seconds}


def count_bytes(rank: int, processes: int, port: int, found) -> None:
    """One of the processes that share a model as FSDP2 does: the bytes that each kind of step gathers."""
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=processes)
    mesh = torch.distributed.init_device_mesh("cpu", (processes,), mesh_dim_names=("data_parallel",))
    model, batches = adapted(SHAPE.num_layers, torch.bfloat16), draw(dict.fromkeys(TASKS, (1, 8)))
    Sharding.shard(SimpleNamespace(offload=False, device_mesh=mesh), model, None)
    gathered = {}
    for name, losses_of in {"two_passes": in_two_passes, "one_pass": in_one_pass}.items():
        step(model, losses_of, batches)  # the first step is another: it learns the order of the blocks
        with Gathered() as counted:
            step(model, losses_of, batches)
        gathered[name] = counted.bytes
    if rank == 0:
        found.put(gathered)
    torch.distributed.destroy_process_group()


def gathered_bytes(processes: int = 2) -> dict[str, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = get_context("spawn").SimpleQueue()
    spawn(count_bytes, (processes, port, found), nprocs=processes)
    return found.get()


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found: time and bytes of joint steps."""
    for one in found["times"]:
        sizes = ", ".join(f"{task}s {rows}x{length}" for task, (rows, length) in one["sizes"].items())
        where, seconds = f"{one['dtype']}, {sizes}", one["cpu_seconds"]
        alone = [sum(both) for both in zip(seconds["caption"], seconds["instruction"], strict=True)]
        yield Ratio(
            f"joint step, CPU time; {where}", "both tasks' alone", ratios(seconds["two_passes"], alone), 1.0, True
        )
        passes = ratios(seconds["one_pass"], seconds["two_passes"])
        yield Ratio(f"joint step in one pass, CPU time; {where}", "in two", passes, 1.0, True)
    gathered = found["gathered_bytes"]
    share = [gathered["one_pass"] / gathered["two_passes"]]
    yield Ratio("joint step in one pass, bytes gathered; 2 processes", "in two", share, 0.55, True)


def run(repetitions: int = 7) -> dict:
    """All measurements, as json takes them."""
    found = {"times": [times(*case, repetitions) for case in CASES], "gathered_bytes": gathered_bytes()}
    return environment() | {"repetitions": repetitions} | found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    print(json.dumps(run(parser.parse_args().repetitions), indent=2))
