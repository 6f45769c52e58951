"""Pre-trains the embedded world's LLaMA: `python -m lav2.demo.pretrain_llama`, about 25 minutes on one core.

Writes `tokenizer.model`, `config.json` and `model.safetensors` (fp16) to `lav2/demo/weights/llama/`, and what was
measured to `lav2/demo/weights/llama_card.json`.
"""

import argparse
import io
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress, TextColumn
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn

from lav2.data.captions import CAPTION_PROMPT
from lav2.demo.corpus import HEADERS, document
from lav2.demo.facts import FACTS
from lav2.demo.language import DESCRIBE, DETAIL, description, questions
from lav2.demo.world import Scene, sample_scenes
from lav2.llama import Llama, LlamaConfig, Tokenizer, load_llama, save_llama

WEIGHTS = Path(__file__).parent / "weights"
SEED = 0
HELD_OUT_SEED = 1_000_003
MODEL = LlamaConfig(
    vocab_size=640, hidden_size=144, num_layers=6, num_heads=4, num_kv_heads=2, intermediate_size=384, max_length=256
)
READING = "Text: {text}\nQuestion: {question}\nAnswer:"
TEMPLATE = "### Instruction:\n{question}\n\n### Input:\n{text}\n\n### Response:"
STEPS, BATCH, LENGTH = 2200, 24, 112
MUON_RATE, ADAMW_RATE, CONSTANT_SHARE = 0.01, 1e-2, 0.5


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024).

    A tiny model learns to read from its context in a fraction of the steps AdamW needs. Matrices of one shape are
    handled together. torch.optim.Muon would do, but came with torch 2.9.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95):
        shapes = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        super().__init__([{"params": group} for group in shapes.values()], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            gradients = torch.stack([matrix.grad for matrix in group["params"]])
            state = self.state[group["params"][0]]
            velocity = state.setdefault("velocity", torch.zeros_like(gradients))
            velocity.lerp_(gradients, 1 - group["momentum"])
            update = orthogonalise(gradients.lerp(velocity, group["momentum"]))  # Nesterov
            rows, columns = update.shape[-2:]
            for matrix, change in zip(group["params"], update, strict=True):
                matrix.sub_(change, alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices to `matrices` (N, rows, columns), by Newton-Schulz iteration."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, steps).mT
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def train_tokenizer(scenes: list[Scene], path: Path, documents: int = 12000) -> Tokenizer:
    """A SentencePiece BPE like LLaMA's: digits apart, unknown characters as bytes; the newline is the byte 0x0A."""
    rng = random.Random(SEED)
    lines = [line for _ in range(documents) for line in document(scenes, rng).split("\n") if line]
    lines += [DESCRIBE, DETAIL, CAPTION_PROMPT] * 500  # what captions are asked with: whole words, few tokens
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=MODEL.vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))),
        user_defined_symbols=[header.replace(" ", "▁") for header in HEADERS],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


def batches(scenes: list[Scene], tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, targets), each (BATCH, LENGTH): rows of whole documents, the rest ignored padding (-100)."""
    rng = random.Random(seed)
    waiting: list[int] = []
    while True:
        rows = torch.full((BATCH, LENGTH + 1), -100)
        for row in rows:
            filled = 0
            while filled + len(waiting) <= LENGTH + 1:
                row[filled : filled + len(waiting)] = torch.tensor(waiting, dtype=torch.long)
                filled += len(waiting)
                waiting = tokenizer.encode(document(scenes, rng), eos=True)[: LENGTH + 1]
        yield rows[:, :-1].clamp(min=0), rows[:, 1:]


def held_out_questions(
    tokenizer: Tokenizer, scenes: list[Scene], prompt: str = READING
) -> dict[str, list[tuple[list[int], list[int]]]]:
    """By kind of question: (prompt tokens, answer tokens) of all questions about one description of each scene."""
    rng = random.Random(SEED)
    gap = "" if prompt == TEMPLATE else " "
    asked = defaultdict(list)
    for scene in scenes:
        text = description(scene, rng)
        for kind, question, answer in questions(scene, rng, text):
            filled = prompt.format(text=text, question=question)
            asked[kind].append((tokenizer.encode(filled), tokenizer.encode(gap + answer, bos=False)))
    return dict(asked)


def fact_questions(tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """(prompt tokens, answer tokens) of all small facts, to be known without a text."""
    prompts = [tokenizer.encode(f"Question: {question}\nAnswer:") for question, _ in FACTS]
    return list(zip(prompts, (tokenizer.encode(f" {answer}", bos=False) for _, answer in FACTS), strict=True))


@torch.no_grad()
def exact_share(model: Llama, asked: list[tuple[list[int], list[int]]], batch: int = 64) -> float:
    """The share of prompts whose greedy continuation is exactly the answer.

    One forward pass suffices: the greedy continuation is the answer if and only if each of its tokens is the most
    likely one after the prompt and the tokens before it.
    """
    right = 0
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        rows = [torch.tensor(prompt + answer) for prompt, answer in part]
        predicted = model(nn.utils.rnn.pad_sequence(rows, batch_first=True)).argmax(-1)
        for row, best, (prompt, _) in zip(rows, predicted, part, strict=True):
            right += torch.equal(best[len(prompt) - 1 : len(row) - 1], row[len(prompt) :])
    return right / len(asked)


@torch.no_grad()
def held_out_loss(model: Llama, scenes: list[Scene], tokenizer: Tokenizer, count: int = 8) -> float:
    """Mean loss per token on documents about held-out scenes."""
    source = batches(scenes, tokenizer, SEED + 1)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in (next(source) for _ in range(count))]
    return torch.stack(losses).mean().item()


def measures(model: Llama, tokenizer: Tokenizer, scenes: list[Scene]) -> dict:
    """Held-out loss; exact answers to questions about a text, by kind and in all; facts; and what share of the same
    questions the untuned model answers in the instruction template, which it should not follow yet."""
    asked = held_out_questions(tokenizer, scenes)
    in_template = held_out_questions(tokenizer, scenes, TEMPLATE)
    return {
        "held_out_loss": round(held_out_loss(model, scenes, tokenizer), 4),
        "context_questions": sum(map(len, asked.values())),
        "context_exact": round(exact_share(model, sum(asked.values(), [])), 4),
        "context_exact_by_kind": {kind: round(exact_share(model, samples), 4) for kind, samples in asked.items()},
        "facts_exact": round(exact_share(model, fact_questions(tokenizer)), 4),
        "template_exact": round(exact_share(model, sum(in_template.values(), [])), 4),
    }


def train(model: Llama, source: Iterator[tuple[Tensor, Tensor]], steps: int, asked: list) -> None:
    """`steps` updates by Muon (matrices inside the layers) and AdamW (embeddings, head, norms), at a constant rate and
    then a falling one. `asked` are held-out questions whose exact share the progress bar shows."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [
        Muon(matrices, lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    falling = lambda step: min(1.0, (1 - step / steps) / (1 - CONSTANT_SHARE))  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, falling) for optimizer in optimizers]
    fields = TextColumn("loss {task.fields[loss]:.3f}, exact answers {task.fields[exact]:.2f}")
    with Progress(*Progress.get_default_columns(), fields) as progress:
        bar = progress.add_task("pre-training", total=steps, loss=float("nan"), exact=0.0)
        for step in range(steps):
            tokens, targets = next(source)
            loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            model.zero_grad()
            loss.backward()
            for one in (*optimizers, *schedules):
                one.step()
            if step % 100 == 99:
                progress.update(bar, loss=loss.item(), exact=exact_share(model, asked))
            progress.advance(bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder that receives llama/ and llama_card.json")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # a model this small gains nothing from more
    start = time.perf_counter()
    held_out = sample_scenes(200, HELD_OUT_SEED)
    scenes = sample_scenes(20000, SEED, exclude=frozenset(held_out))
    folder = options.output / "llama"
    tokenizer = train_tokenizer(scenes, folder / "tokenizer.model")
    model = Llama(MODEL).reset_parameters()
    # Muon soon makes a block's outputs large: words must stay audible beside them in the residual stream
    nn.init.normal_(model.tok_embeddings.weight)
    asked = sum(held_out_questions(tokenizer, held_out[:30]).values(), [])
    train(model, batches(scenes, tokenizer, SEED), options.steps, asked)
    save_llama(model, tokenizer.path, folder)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": SEED,
        "steps": options.steps,
        "batch": BATCH,
        "length": LENGTH,
        "rates": {"muon": MUON_RATE, "adamw": ADAMW_RATE},
        "seconds": round(time.perf_counter() - start),
        **measures(load_llama(folder), tokenizer, held_out),
    }
    text = json.dumps(card, indent=2) + "\n"
    (options.output / "llama_card.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
