"""Tokens a second of lav2's generation beside transformers' ``generate`` on the same weights, and with an adapter.

The weights are random, in the shape of SmolLM2-135M. ``generate`` is measured in whole answers, in turns with
transformers'. What an adapter costs is measured token by token, in turns with the bare model, so that a busy machine
slows all alike: V2's, which sees an image; the same with scales, biases and norms folded into the base; and folded
without prompts, which tells what folded biases cost from what prompts do. In the same turns stand the model's products
with its weights alone, with nothing between them: what decoding could reach at most.

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
from torch import Tensor

from benchmarks.measure import SMOLLM2, Ratio, environment, ratios
from lav2.adapter import AdaptedLlama, adapt
from lav2.adapter.export import fold_tuning, linears
from lav2.llama import Llama, load_llama
from lav2.llama.decoder import Decoder
from lav2.llama.generation import generate

SHAPE = SMOLLM2 | {"max_position_embeddings": 2048, "initializer_range": 0.041666}
FEATURES = (50, 512)  # tokens and width of an image encoder such as ViT-B/32
TARGETS = {1: 1.5, 16: 2.0}  # decoding, over transformers, by batch size
BARE, LIMIT = "the bare model", "products alone"
LIMIT_SHARE = 0.6  # of the products' rate; a single row has either this or its target above
NO_PROMPTS = {"visual_layers": 0, "prompt_layers": 0, "prompt_length": 0}
ADAPTED = {  # what is measured beside the bare model, and the least share of its speed when decoding
    "an adapted model": 0.9,
    "a folded model": 1.0,
    "a folded model without prompts": None,
}


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
            models = {BARE: ours} | adapted_models(partial(load_llama, folder, getattr(torch, dtype)))
            for batch_size in batch_sizes:
                prompts = torch.randint(SHAPE["vocab_size"], (batch_size, prompt_length))
                features = torch.randn(batch_size, *FEATURES)
                contestants = {name: Greedy(model, prompts, features, new_tokens) for name, model in models.items()}
                found = whole_answers(theirs, ours, prompts, new_tokens, repetitions)
                found |= token_by_token(contestants, partial(products, ours, batch_size), new_tokens, repetitions)
                results.append({"dtype": dtype, "batch_size": batch_size} | found)
    return environment("transformers") | {
        "settings": {"prompt_length": prompt_length, "new_tokens": new_tokens, "repetitions": repetitions},
        "results": results,
    }


def adapted_models(load: Callable[[], Llama]) -> dict[str, AdaptedLlama]:
    """V2's adapter in each form, on weights of its own: folding changes them."""
    adapted, whole = (adapt(load(), feature_width=FEATURES[1]).eval() for _ in range(2))
    without = adapt(load(), NO_PROMPTS).eval()
    return dict(zip(ADAPTED, (adapted, fold_tuning(whole), fold_tuning(without)), strict=True))


def whole_answers(theirs, ours: Llama, prompts: Tensor, new_tokens: int, repetitions: int) -> dict:
    """Greedy generation by transformers and by lav2: prefill and decode tokens a second, and whether they agree."""

    def transformers_generate(count: int) -> list[list[int]]:
        mask = torch.ones_like(prompts)
        rows = theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0, top_k=None, top_p=None
        )
        return rows[:, prompts.shape[1] :].tolist()

    def lav2_generate(count: int) -> list[list[int]]:
        return generate(ours, prompts.tolist(), eos_id=[], max_new_tokens=count)

    contestants = {"transformers": transformers_generate, "lav2": lav2_generate}
    answers = {name: contestant(new_tokens) for name, contestant in contestants.items()}  # also warms up
    speeds = {name: {"prefill": [], "decode": []} for name in contestants}
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            first, all_tokens = seconds(partial(contestant, 1)), seconds(partial(contestant, new_tokens))
            speeds[name]["prefill"].append(prompts.numel() / first)
            speeds[name]["decode"].append(len(prompts) * (new_tokens - 1) / (all_tokens - first))
    pairs = [
        pair for rows in zip(answers["lav2"], answers["transformers"], strict=True) for pair in zip(*rows, strict=True)
    ]
    return {"tokens_per_second": speeds, "tokens_equal_transformers": sum(a == b for a, b in pairs) / len(pairs)}


class Greedy:
    """A model at work on prompts, word by word; ``model`` is an adapted one, with the images it sees, or a bare one."""

    def __init__(self, model: AdaptedLlama | Llama, prompts: Tensor, images: Tensor, new_tokens: int):
        self.model, self.images = model, images
        self.prompts, self.new_tokens = prompts.tolist(), new_tokens

    def read_prompts(self) -> None:
        llama, hooks = self.model, None
        if isinstance(self.model, AdaptedLlama):
            llama = self.model.llama
            hooks = self.model.bind(self.images if self.model.feature_width else None, keep=True)
        self.decoder = Decoder(llama, self.prompts, self.new_tokens, hooks)
        self.tokens = self.decoder.read_prompts().argmax(-1)

    def step(self) -> None:
        self.tokens = self.decoder.read(self.tokens).argmax(-1)


@torch.inference_mode()
def token_by_token(models: dict[str, Greedy], limit: Callable[[], object], new_tokens: int, repetitions: int) -> dict:
    """Seconds of reading the prompts and, the median, of a step, in turns with each other and with ``limit``."""
    reads = {name: model.read_prompts for name, model in models.items()}
    steps = {name: model.step for name, model in models.items()} | {LIMIT: limit}
    found = {"prefill": {name: [] for name in reads}, "step": {name: [] for name in steps}}
    for turn in range(repetitions + 1):
        first = {name: seconds(read) for name, read in reads.items()}
        times = [{name: seconds(step) for name, step in steps.items()} for _ in range(new_tokens)]
        if turn:  # the first warms up
            for name, read in first.items():
                found["prefill"][name].append(read)
            for name in steps:
                found["step"][name].append(statistics.median(each[name] for each in times))
    return found


def products(llama: Llama, rows: int) -> None:
    """The products of ``rows`` new tokens with every weight of the model."""
    inputs = {
        size: torch.randn(rows, 1, size, dtype=llama.norm.weight.dtype)
        for size in (llama.config.hidden_size, llama.config.intermediate_size)
    }
    for linear in linears(llama):
        linear(inputs[linear.in_features])
    llama.logits(inputs[llama.config.hidden_size])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found, beside transformers and the products alone, and the adapted models beside the bare one."""
    for one in found["results"]:
        batch_size, speeds = one["batch_size"], one["tokens_per_second"]
        where = f"{one['dtype']}, batch {batch_size}"
        share = Ratio(
            f"decode, of the limit; {where}",
            LIMIT,
            ratios(one["step"][LIMIT], one["step"][BARE]),
            LIMIT_SHARE if batch_size == 1 else None,
        )
        for phase, times in (("prefill", one["prefill"]), ("decode", one["step"])):
            target = TARGETS.get(batch_size) if phase == "decode" and not share.met else None
            faster = ratios(speeds["lav2"][phase], speeds["transformers"][phase])
            yield Ratio(f"{phase}, tokens a second; {where}", "transformers", faster, target)
            for name, least in ADAPTED.items():
                beside = ratios(times[BARE], times[name])
                yield Ratio(f"{phase} of {name}; {where}", BARE, beside, least if phase == "decode" else None)
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
