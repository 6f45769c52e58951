"""Tokens a second of lav2's generation beside transformers' ``generate`` on the same weights, and with an adapter.

The weights are random, in the shape of SmolLM2-135M. The adapted model is V2's, which sees an image; ``folded`` is the
same with scales, biases and norms folded into its base. Each repetition measures all contestants one after another, so
that a busy machine slows all of them, and then the model's products with its weights alone, with nothing between them:
what decoding could reach at most. A ratio is the median over repetitions of ratios within one.

    python -m benchmarks.generation [--repetitions 5] [--prompt 128] [--new 64] > generation.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import transformers

from benchmarks.measure import SMOLLM2, Ratio, environment, ratios
from lav2.adapter import adapt
from lav2.adapter.export import fold_tuning, linears
from lav2.llama import Llama, load_llama
from lav2.llama.generation import generate

SHAPE = SMOLLM2 | {"max_position_embeddings": 2048, "initializer_range": 0.041666}
FEATURES = (50, 512)  # tokens and width of an image encoder such as ViT-B/32
TARGETS = {1: 1.5, 16: 2.0}  # decoding, over transformers, by batch size
LIMIT_SHARE = 0.6  # of the products' rate; a single row has either this or its target above
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
                again = load_llama(folder, getattr(torch, dtype))  # folding changes the base
                found = compare(
                    contestants(theirs, ours, again, prompts),
                    partial(products, ours, batch_size),
                    batch_size,
                    prompt_length,
                    new_tokens,
                    repetitions,
                )
                results.append({"dtype": dtype, "batch_size": batch_size} | found)
    return environment("transformers") | {
        "settings": {"prompt_length": prompt_length, "new_tokens": new_tokens, "repetitions": repetitions},
        "results": results,
    }


def contestants(theirs, ours: Llama, again: Llama, prompts: torch.Tensor) -> dict[str, Generate]:
    """Greedy generation by transformers, by lav2, and by lav2 with an adapter that sees an image a row, also folded.

    ``again`` are the weights of ``ours`` once more, which the folded model uses up.
    """
    adapted = adapt(ours, feature_width=FEATURES[1]).eval()
    folded = fold_tuning(adapt(again, feature_width=FEATURES[1]).eval())
    features = torch.randn(len(prompts), *FEATURES)

    def transformers_generate(count: int) -> list[list[int]]:
        mask = torch.ones_like(prompts)
        rows = theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0, top_k=None, top_p=None
        )
        return rows[:, prompts.shape[1] :].tolist()

    def lav2_generate(count: int, model=None) -> list[list[int]]:
        hooks = None
        if model is not None:
            with torch.inference_mode():
                hooks = model.bind(features, keep=True)
        llama = ours if model is None else model.llama
        return generate(llama, prompts.tolist(), eos_id=[], max_new_tokens=count, hooks=hooks)

    return {
        "transformers": transformers_generate,
        "lav2": lav2_generate,
        "adapted": partial(lav2_generate, model=adapted),
        "folded": partial(lav2_generate, model=folded),
    }


@torch.inference_mode()
def products(llama: Llama, rows: int) -> float:
    """Seconds that the products of ``rows`` new tokens with every weight of the model take."""
    weights = list(linears(llama))
    inputs = {linear: torch.randn(rows, 1, linear.in_features, dtype=linear.weight.dtype) for linear in weights}
    hidden = inputs[llama.layers[0].attention.wq]
    start = time.perf_counter()
    for linear, x in inputs.items():
        linear(x)
    llama.logits(hidden)
    return time.perf_counter() - start


def compare(
    contestants: dict[str, Generate],
    limit: Callable[[], float],
    batch_size: int,
    prompt_length: int,
    new_tokens: int,
    repetitions: int,
) -> dict:
    """Prefill and decode tokens a second of each contestant, and of the products alone, which take ``limit()``."""
    limit()  # warms up
    answers = {name: contestant(new_tokens) for name, contestant in contestants.items()}  # also warms up
    speeds = {name: {"prefill": [], "decode": []} for name in contestants}
    limits = []
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            first, all_tokens = seconds(contestant, 1), seconds(contestant, new_tokens)
            speeds[name]["prefill"].append(batch_size * prompt_length / first)
            speeds[name]["decode"].append(batch_size * (new_tokens - 1) / (all_tokens - first))
        limits.append(batch_size / statistics.median(limit() for _ in range(8)))
    pairs = [
        pair for rows in zip(answers["lav2"], answers["transformers"], strict=True) for pair in zip(*rows, strict=True)
    ]
    return {
        "tokens_per_second": speeds,
        "limit_tokens_per_second": limits,
        "tokens_equal_transformers": sum(a == b for a, b in pairs) / len(pairs),
    }


def seconds(contestant: Generate, count: int) -> float:
    start = time.perf_counter()
    contestant(count)
    return time.perf_counter() - start


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found, beside transformers and the products alone, and the adapted models beside the bare one."""
    for one in found["results"]:
        batch_size, speeds = one["batch_size"], one["tokens_per_second"]
        where = f"{one['dtype']}, batch {batch_size}"
        share = Ratio(
            f"decode, of the limit; {where}",
            "products alone",
            ratios(speeds["lav2"]["decode"], one["limit_tokens_per_second"]),
            LIMIT_SHARE if batch_size == 1 else None,
        )
        for phase in ("prefill", "decode"):
            target = TARGETS.get(batch_size) if phase == "decode" and not share.met else None
            faster = ratios(speeds["lav2"][phase], speeds["transformers"][phase])
            yield Ratio(f"{phase}, tokens a second; {where}", "transformers", faster, target)
            for name, least in (("adapted", 0.9), ("folded", 1.0)):
                adapted = ratios(speeds[name][phase], speeds["lav2"][phase])
                what = f"{phase} of {'a folded' if name == 'folded' else 'an adapted'} model; {where}"
                yield Ratio(what, "the bare model", adapted, least if phase == "decode" else None)
        yield share


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
