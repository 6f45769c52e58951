"""A training step of lav2 beside peft and litgpt on the same weights, and beside what frozen weights must cost.

The weights are random, in the shape of SmolLM2-135M or of a few layers of LLaMA-7B. Half of the positions carry labels,
as instructions do. Speeds are taken in turns within one process, so that a busy machine slows all; a ratio is the
median over repetitions of ratios within one, of which the largest cases, where a step takes half a minute, have two.
Peak memory is taken in a process for each contestant, above what it holds once weights and code are loaded.

    python -m benchmarks.training [--shape smollm2] [--batch 4x256] [--dtype bfloat16] [--methods prompts lora]
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import FIGURES, SMOLLM2, Ratio, begin_peak, environment, matmul_rate, ratios, resident

SHAPES = {
    "smollm2": SMOLLM2,
    "llama_7b_slice": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}
LIMITS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "initializer_range": 0.02}
PROMPT_LENGTH = 10
LORA = {"rank": 8, "scaling": 2.0}
PAIRS = {"prompts": "peft_prompts", "bias_and_prompts": "litgpt_adapter_v2", "lora": "peft_lora"}
TARGETS = {  # tokens a second over the peer's, by dtype, and peak memory over the peer's
    "prompts": ({"float32": 1.0, "bfloat16": 1.7}, 0.6),
    "bias_and_prompts": ({"float32": 1.1, "bfloat16": 1.6}, 0.5),
    "lora": ({"float32": 1.05, "bfloat16": 1.5}, None),
}
SECONDS = 40  # of one comparison's turns: after that many there are no more, once there are two
LIMIT_SHARE = {"float32": 0.7, "bfloat16": 0.6}
Step = Callable[[], float]  # forward, backward, no optimizer: the loss


def batch(shape: dict, batch_size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (B, T); the second half of each row is labelled."""
    tokens = torch.randint(shape["vocab_size"], (batch_size, length), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, : length // 2] = -100
    return tokens, labels


def write_weights(folder: str, shape: dict) -> None:
    """A Hugging Face folder with random weights, which all contestants read."""
    import transformers

    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **LIMITS)).save_pretrained(folder)


def lav2_step(folder: str, dtype: torch.dtype, config: dict, tokens: torch.Tensor, labels: torch.Tensor) -> Step:
    from lav2.adapter import adapt
    from lav2.llama import kernels, load_llama
    from lav2.training.loss import response_loss

    kernels.fuse()
    model = adapt(load_llama(folder, dtype), config).train()
    return step(model, lambda: response_loss(model, {"tokens": tokens, "labels": labels}, "instruction"))


def prompts(folder: str, dtype: torch.dtype, layers: int, *data: torch.Tensor) -> Step:
    return lav2_step(folder, dtype, {**NOTHING, "prompt_layers": layers - 1, "prompt_length": PROMPT_LENGTH}, *data)


def bias_and_prompts(folder: str, dtype: torch.dtype, layers: int, *data: torch.Tensor) -> Step:
    tuned = {"bias": True, "scale": "output", "norms": "all", "prompt_layers": layers - 2}
    return lav2_step(folder, dtype, {**NOTHING, **tuned, "prompt_length": PROMPT_LENGTH}, *data)


def lora(folder: str, dtype: torch.dtype, layers: int, *data: torch.Tensor) -> Step:
    return lav2_step(folder, dtype, {**NOTHING, "lora": LORA}, *data)


NOTHING = {
    "bias": False,
    "scale": "none",
    "norms": "none",
    "visual_layers": 0,
    "prompt_layers": 0,
    "prompt_length": 0,
}


def peft_step(folder: str, dtype: torch.dtype, config, tokens: torch.Tensor, labels: torch.Tensor) -> Step:
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    model = peft.get_peft_model(base, config).train()
    return step(model, lambda: model(input_ids=tokens, labels=labels, use_cache=False).loss)


def peft_prompts(folder: str, dtype: torch.dtype, layers: int, *data: torch.Tensor) -> Step:
    from peft import AdaptionPromptConfig

    config = AdaptionPromptConfig(adapter_len=PROMPT_LENGTH, adapter_layers=layers - 1, task_type="CAUSAL_LM")
    return peft_step(folder, dtype, config, *data)


def peft_lora(folder: str, dtype: torch.dtype, layers: int, *data: torch.Tensor) -> Step:
    from peft import LoraConfig

    config = LoraConfig(
        r=LORA["rank"],
        lora_alpha=LORA["rank"] * LORA["scaling"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft_step(folder, dtype, config, *data)


def litgpt_adapter_v2(folder: str, dtype: torch.dtype, layers: int, tokens: torch.Tensor, labels: torch.Tensor) -> Step:
    from litgpt.adapter_v2 import GPT, Config, mark_only_adapter_v2_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    with open(f"{folder}/config.json") as file:
        shape = json.load(file)
    config = Config(
        block_size=LIMITS["max_position_embeddings"],
        n_layer=layers,
        n_embd=shape["hidden_size"],
        padded_vocab_size=shape["vocab_size"],
        vocab_size=shape["vocab_size"],
        n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_key_value_heads"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=LIMITS["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape["intermediate_size"],
        adapter_prompt_length=PROMPT_LENGTH,
    )
    weights, state = load_file(f"{folder}/model.safetensors"), {}
    copy_weights_hf_llama(config, {}, state, weights)
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    model = GPT(config)
    model.load_state_dict(state, strict=False)  # the adapter's own parameters are not in it
    model = model.to(dtype).train()
    if shape["tie_word_embeddings"]:
        model.lm_head.linear.weight = model.transformer.wte.weight
    mark_only_adapter_v2_as_trainable(model)

    def loss() -> torch.Tensor:  # as litgpt's finetune/adapter_v2.py
        for block in model.transformer.h:  # litgpt keeps the prompts' keys of the first step, and a second one fails
            block.attn.adapter_kv_cache = None
        logits = model(tokens, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, labels[..., 1:])

    return step(model, loss)


def step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward_and_backward() -> float:
        for parameter in trainable:
            parameter.grad = None
        found = loss()
        found.backward()
        return found.item()

    return forward_and_backward


def required_operations(shape: dict, batch_size: int, length: int) -> tuple[float, float]:
    """Floating-point operations that frozen weights require, forward and backward through activations: (blocks, head).

    A product with a weight costs two operations for each of its numbers and each token, forward, and as many backward
    to the activation; the first block's input needs no gradient, which is left out of account. Attention over half of
    the positions on average: two products forward, four backward. The head stands where there are labels.
    """
    size, heads = shape["hidden_size"], shape["num_attention_heads"]
    kv_size = size // heads * shape["num_key_value_heads"]
    weights = 2 * size * size + 2 * size * kv_size + 3 * size * shape["intermediate_size"]
    tokens = batch_size * (length - 1)
    block = 4 * weights * tokens + 6 * 2 * size * tokens * length / 2
    labelled = batch_size * (length - length // 2)
    return block * shape["num_hidden_layers"], 4 * size * shape["vocab_size"] * labelled


def compare(folder: str, shape_name: str, dtype_name: str, size: str, ours: str, repetitions: int) -> dict:
    """Losses, tokens a second and peaks of one of lav2's methods and its peer, in turns, and what the limit allows."""
    shape, dtype = SHAPES[shape_name], getattr(torch, dtype_name)
    batch_size, length = map(int, size.split("x"))
    layers, data = shape["num_hidden_layers"], batch(shape, batch_size, length)
    contestants = {name: globals()[name] for name in (ours, PAIRS[ours])}
    peaks = {
        name: apart(peak, contestant, folder, dtype_name, layers, data) for name, contestant in contestants.items()
    }
    steps = {name: contestant(folder, dtype, layers, *data) for name, contestant in contestants.items()}
    losses = {name: forward_and_backward() for name, forward_and_backward in steps.items()}  # also warms up
    assert max(losses.values()) - min(losses.values()) < 0.05, losses  # untrained adapters change nothing
    operations = sum(required_operations(shape, batch_size, length))
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    limit = []
    started = time.perf_counter()
    for turn in range(repetitions):
        if turn >= 2 and time.perf_counter() - started > SECONDS:
            break
        rate = matmul_rate(dtype, shape["hidden_size"], shape["intermediate_size"], batch_size * length)
        limit.append(batch_size * length * rate / operations)
        for name, forward_and_backward in steps.items():
            start = time.perf_counter()
            forward_and_backward()
            speeds[name].append(batch_size * length / (time.perf_counter() - start))
    return {
        "shape": shape_name,
        "dtype": dtype_name,
        "batch": size,
        "ours": ours,
        "loss": losses,
        "limit_tokens_per_second": limit,
        "tokens_per_second": speeds,
        "peak_mb_above_weights": peaks,
    }


def lines(found: dict) -> Iterator[Ratio]:
    """What ``run`` found, beside each method's peer and the limit."""
    for one in found["results"]:
        where = f"{one['shape']}, {one['dtype']}, {one['batch']}"
        ours, peer, dtype = one["ours"], PAIRS[one["ours"]], one["dtype"]
        speeds, peaks = one["tokens_per_second"], one["peak_mb_above_weights"]
        speed, memory = TARGETS[ours]
        yield Ratio(f"{ours}, tokens a second; {where}", peer, ratios(speeds[ours], speeds[peer]), speed[dtype])
        yield Ratio(f"{ours}, peak above the weights; {where}", peer, [peaks[ours] / peaks[peer]], memory, True)
        share = LIMIT_SHARE[dtype] if one["shape"] == "llama_7b_slice" else None
        of_limit = ratios(speeds[ours], one["limit_tokens_per_second"])
        yield Ratio(f"{ours}, of the limit; {where}", "matrix products", of_limit, share)


def apart(work: Callable, *arguments):
    """What ``work`` gives, done in a process of its own: the next one finds all memory free.

    Raises:
        BrokenProcessPool: the system ended that process, most likely for want of memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak(contestant: Callable, folder: str, dtype: str, layers: int, data: tuple[torch.Tensor, ...]) -> float:
    """MB that two steps of ``contestant`` take above its weights, once code is imported and kernels are compiled."""
    start = partial(contestant, folder, getattr(torch, dtype), layers)
    for _ in range(2):
        start(*(x[:2, -32:] for x in data))()  # a small batch
    forward_and_backward = start(*data)
    begin_peak()
    before = resident("VmRSS")
    for _ in range(2):
        forward_and_backward()
    return round((resident("VmHWM") - before) / 2**20, 1)


CASES = (
    *(("smollm2", dtype, "4x256") for dtype in ("bfloat16", "float32")),
    *(("llama_7b_slice", dtype, "4x256") for dtype in ("bfloat16", "float32")),
    *(("smollm2", dtype, "8x512") for dtype in ("bfloat16", "float32")),
)


def run(
    cases: Sequence[tuple[str, str, str]] = CASES,
    methods: Sequence[str] = tuple(PAIRS),
    repetitions: int = 5,
    kept: Path = FIGURES / "training",
) -> dict:
    """All measurements, as json takes them. ``cases`` are (shape, dtype, batch).

    Each comparison lies in the folder ``kept`` once it is made, and is not made again. One that the system ended does
    not end the others: ``failed`` names it.
    """
    results, failed = [], []
    kept.mkdir(parents=True, exist_ok=True)
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            for ours in methods:
                name = ", ".join((*case, ours))
                file = kept / f"{'_'.join((*case, ours))}.json"
                if not file.is_file():
                    print(f"  {name}", file=sys.stderr, flush=True)
                    if not any(Path(folder).iterdir()):
                        apart(write_weights, folder, SHAPES[case[0]])
                    started = time.perf_counter()
                    try:
                        found = apart(compare, folder, *case, ours, repetitions)
                    except BrokenProcessPool:
                        print(f"  {name}: the system ended it, most likely for want of memory", file=sys.stderr)
                        failed.append(name)
                        continue
                    file.write_text(json.dumps(found | {"minutes": (time.perf_counter() - started) / 60}))
                results.append(json.loads(file.read_text()))
    return environment("transformers", "peft", "litgpt") | {
        "repetitions": repetitions,
        "minutes": sum(one["minutes"] for one in results),
        "results": results,
        "failed": failed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", metavar="ROWSxTOKENS")
    parser.add_argument("--methods", nargs="+", choices=PAIRS, default=list(PAIRS))
    asked = parser.parse_args()
    cases = [
        (shape, dtype, asked.batch or size)
        for shape, dtype, size in CASES
        if asked.shape in (None, shape) and asked.dtype in (None, dtype)
    ]
    with tempfile.TemporaryDirectory() as folder:  # asked for anew, so measured anew
        print(json.dumps(run(list(dict.fromkeys(cases)), asked.methods, asked.repetitions, Path(folder)), indent=2))
