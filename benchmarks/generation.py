"""Tokens a second of lav2's generation beside transformers' ``generate`` on the same weights, and with an adapter.

The weights are random, in the shape of SmolLM2-135M. Each repetition measures all contestants one after another, so
that a busy machine slows all of them; a ratio is the median over repetitions of ratios within one.

    python benchmarks/generation.py [--repetitions 5] [--prompt 128] [--new 64] > generation.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
import transformers

from benchmarks.measure import SMOLLM2, Ratio, environment, ratios
from lav2.adapter import adapt
from lav2.llama import load_llama
from lav2.llama.generation import generate

SHAPE = SMOLLM2 | {"max_position_embeddings": 2048, "initializer_range": 0.041666}
FEATURES = (50, 512)  # tokens and width of an image encoder such as ViT-B/32
TARGETS = {1: 1.5, 16: 2.0}  # decoding, over transformers, by batch size
Generate = Callable[[int], list[list[int]]]  # how many tokens → the new tokens of each row


def run(
    batch_sizes: tuple[int, ...] = (1, 16),
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    prompt_length: int = 128,
    new_tokens: int = 64,
    repetitions: int = 5,
) -> dict:
    """All measurements, as json takes them: one entry for each dtype and batch size."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    theirs.generation_config.eos_token_id = None  # all answers are equally long
    results = []
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for dtype in dtypes:
            theirs.to(getattr(torch, dtype))
            ours = load_llama(folder, getattr(torch, dtype))
            for batch_size in batch_sizes:
                prompts = torch.randint(SHAPE["vocab_size"], (batch_size, prompt_length))
                found = compare(contestants(theirs, ours, prompts), batch_size, prompt_length, new_tokens, repetitions)
                results.append({"dtype": dtype, "batch_size": batch_size} | found)
    return environment("transformers") | {
        "settings": {"prompt_length": prompt_length, "new_tokens": new_tokens, "repetitions": repetitions},
        "results": results,
    }


def contestants(theirs, ours, prompts: torch.Tensor) -> dict[str, Generate]:
    """Greedy generation by transformers, by lav2 and by lav2 with an adapter that sees an image a row."""
    adapted = adapt(ours, feature_width=FEATURES[1]).eval()
    features = torch.randn(len(prompts), *FEATURES)

    def transformers_generate(count: int) -> list[list[int]]:
        mask = torch.ones_like(prompts)
        rows = theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0, top_k=None, top_p=None
        )
        return rows[:, prompts.shape[1] :].tolist()

    def lav2_generate(count: int) -> list[list[int]]:
        return generate(ours, prompts.tolist(), eos_id=[], max_new_tokens=count)

    def adapted_generate(count: int) -> list[list[int]]:
        with torch.inference_mode():
            hooks = adapted.bind(features, keep=True)
        return generate(ours, prompts.tolist(), eos_id=[], max_new_tokens=count, hooks=hooks)

    return {"transformers": transformers_generate, "lav2": lav2_generate, "adapted": adapted_generate}


def compare(
    contestants: dict[str, Generate], batch_size: int, prompt_length: int, new_tokens: int, repetitions: int
) -> dict:
    """Prefill and decode tokens a second of each contestant."""
    answers = {name: contestant(new_tokens) for name, contestant in contestants.items()}  # also warms up
    speeds = {name: {"prefill": [], "decode": []} for name in contestants}
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            first, all_tokens = seconds(contestant, 1), seconds(contestant, new_tokens)
            speeds[name]["prefill"].append(batch_size * prompt_length / first)
            speeds[name]["decode"].append(batch_size * (new_tokens - 1) / (all_tokens - first))
    pairs = [
        pair for rows in zip(answers["lav2"], answers["transformers"], strict=True) for pair in zip(*rows, strict=True)
    ]
    return {
        "tokens_per_second": speeds,
        "tokens_equal_transformers": sum(a == b for a, b in pairs) / len(pairs),
    }


def seconds(contestant: Generate, count: int) -> float:
    start = time.perf_counter()
    contestant(count)
    return time.perf_counter() - start


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found, beside transformers, and the adapted model beside the bare one."""
    for one in found["results"]:
        where, speeds = f"{one['dtype']}, batch {one['batch_size']}", one["tokens_per_second"]
        for phase in ("prefill", "decode"):
            target = TARGETS[one["batch_size"]] if phase == "decode" else None
            faster = ratios(speeds["lav2"][phase], speeds["transformers"][phase])
            yield Ratio(f"{phase}, tokens a second; {where}", "transformers", faster, target)
            adapted = ratios(speeds["adapted"][phase], speeds["lav2"][phase])
            yield Ratio(f"{phase} of an adapted model; {where}", "the bare model", adapted, 0.9 if target else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = run(prompt_length=arguments.prompt, new_tokens=arguments.new, repetitions=arguments.repetitions)
    print(json.dumps(found, indent=2))
