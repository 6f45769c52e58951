"""Pre-trains the embedded world's RoBERTa on masked words: `python -m lav2.demo.pretrain_roberta`, about 15 minutes.

Writes a Hugging Face folder, `config.json`, `model.safetensors` (fp16) and the tokenizer's files, to
`lav2/demo/weights/roberta/`, and what was measured to `lav2/demo/weights/roberta_card.json`. Needs the extra
`transformers`.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

from lav2.demo.corpus import document
from lav2.demo.pretrain_llama import HELD_OUT_SEED, SEED, WEIGHTS, Muon
from lav2.demo.world import Scene, sample_scenes

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # numbered from 0, the first four as in RoBERTa's vocabulary
VOCABULARY, LENGTH = 768, 96
STEPS, BATCH = 1800, 32
MUON_RATE, ADAMW_RATE, WARM_UP, CONSTANT_SHARE = 0.01, 3e-3, 50, 0.5
MASKED, IGNORED = 0.2, -100


def train_tokenizer(scenes: list[Scene], documents: int = 12000) -> PreTrainedTokenizerBase:
    """A byte-level BPE like RoBERTa's, of the embedded world's words."""
    rng = random.Random(SEED)
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    texts = [document(scenes, rng) for _ in range(documents)]
    tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, add_prefix_space=True, model_max_length=LENGTH, truncation_side="right"
    )


def documents(scenes: list[Scene], tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of tokenized documents: ``input_ids`` and ``attention_mask``, (BATCH, at most LENGTH)."""
    rng = random.Random(seed)
    while True:
        texts = [document(scenes, rng) for _ in range(BATCH)]
        yield dict(tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))


def masked(batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """The batch with a fifth of its words to be told: of these, 8 of 10 are masked, 1 is another word, 1 stays."""
    tokens = batch["input_ids"].clone()
    special = torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))
    asked = (torch.rand(tokens.shape) < MASKED) & ~special
    labels = tokens.masked_fill(~asked, IGNORED)
    fate = torch.rand(tokens.shape)
    tokens[asked & (fate < 0.8)] = tokenizer.mask_token_id
    other = asked & (fate >= 0.8) & (fate < 0.9)
    tokens[other] = torch.randint(len(SPECIAL), len(tokenizer), (int(other.sum()),))
    return {**batch, "input_ids": tokens, "labels": labels}


@torch.no_grad()
def measures(
    model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerBase, scenes: list[Scene], batches: int = 8
) -> dict[str, float]:
    """On held-out documents, of the words that are masked: the share told right, and what the commonest word gets."""
    torch.manual_seed(SEED)
    source, right, answers = documents(scenes, tokenizer, HELD_OUT_SEED), 0, []
    for _ in range(batches):
        batch = masked(next(source), tokenizer)
        labels = batch.pop("labels")
        asked = (labels != IGNORED) & (batch["input_ids"] == tokenizer.mask_token_id)
        right += int((model(**batch).logits.argmax(-1)[asked] == labels[asked]).sum())
        answers.append(labels[asked])
    answers = torch.cat(answers)
    return {
        "masked_words": len(answers),
        "masked_words_right": round(right / len(answers), 4),
        "commonest_word_right": round(answers.bincount().max().item() / len(answers), 4),
    }


def train(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerBase, scenes: list[Scene], steps: int) -> None:
    """`steps` updates by Muon (matrices inside the layers) and AdamW (all others): a warm-up, a constant rate and then
    a falling one."""
    matrices = [p for p in model.roberta.encoder.parameters() if p.dim() == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [
        Muon(matrices, lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rate = lambda step: min(1.0, (step + 1) / WARM_UP, (1 - step / steps) / (1 - CONSTANT_SHARE))  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    source = documents(scenes, tokenizer, SEED)
    with Progress(*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        bar = progress.add_task("pre-training", total=steps, loss=float("nan"))
        for step in range(steps):
            loss = model(**masked(next(source), tokenizer)).loss
            model.zero_grad()
            loss.backward()
            for one in (*optimizers, *schedules):
                one.step()
            if step % 100 == 99:
                progress.console.print(f"step {step + 1}: loss {loss.item():.3f}")
            progress.update(bar, advance=1, loss=loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for roberta/ and roberta_card.json")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # a model this small gains nothing from more
    start = time.perf_counter()
    held_out = sample_scenes(1000, SEED + 1)  # the same that the vision encoder has never seen
    scenes = sample_scenes(20000, SEED, exclude=frozenset(held_out))
    tokenizer = train_tokenizer(scenes)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LENGTH + 2,  # RoBERTa counts positions from 2
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = RobertaForMaskedLM(config).train()
    train(model, tokenizer, scenes, options.steps)
    folder = options.output / "roberta"
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = model.float().eval()
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": SEED,
        "steps": options.steps,
        "batch": BATCH,
        "length": LENGTH,
        "rates": {"muon": MUON_RATE, "adamw": ADAMW_RATE},
        "seconds": round(time.perf_counter() - start),
        **measures(model, tokenizer, held_out),
    }
    text = json.dumps(card, indent=2) + "\n"
    (options.output / "roberta_card.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
