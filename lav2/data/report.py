"""What a run's data hold: counts, lengths, what is lost, and samples as the model sees them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lav2.data.problems import Problems
from lav2.data.slots import IMAGE, MODALITY
from lav2.data.templates import Template
from lav2.data.tokens import Sample, Samples

SUPERVISED, CONTROL = "bold green", "dim"


def summarize(training: Samples, held_out: Samples, problems: Problems) -> dict[str, Any]:
    """Counts of samples and responses, percentiles of tokens a sample, and all that was cut, skipped or is odd."""
    lengths, truncated, lost_turns = (
        np.concatenate([getattr(training, name), getattr(held_out, name)])
        for name in ("lengths", "truncated", "lost_turns")
    )
    places = [*training.places, *held_out.places]
    return {
        "training": len(training),
        "validation": len(held_out),
        "tokens": {f"{q}%": int(np.percentile(lengths, q, method="nearest")) for q in (50, 90, 99, 100)},
        "truncated": int((truncated > 0).sum()),
        "truncated_tokens": int(truncated.sum()),
        "truncated_places": [place for place, cut in zip(places, truncated, strict=True) if cut],
        "lost_turns": int(lost_turns.sum()),
        "skipped": problems.skipped,
        "problems": problems.places,
        "warnings": problems.warnings,
    }


def print_summary(summaries: Mapping[str, dict[str, Any]], problems: Mapping[str, Problems]) -> None:
    """The summaries of all tasks as a table, and below it lines for each task's bad samples and warnings."""
    table = Table("samples", *summaries)
    rows = {name: name for name in ("training", "validation", "skipped", "truncated")}
    rows |= {"truncated_tokens": "tokens cut off", "lost_turns": "turns cut off"}
    for name, title in rows.items():
        table.add_row(title, *(f"{summary[name]:,}" for summary in summaries.values()))
    tokens = [summary["tokens"].values() for summary in summaries.values()]
    for name, lengths in zip(("median", "90 %", "99 %", "longest"), zip(*tokens, strict=True), strict=True):
        table.add_row(f"tokens, {name}", *(f"{length:,}" for length in lengths))
    Console().print(table)
    for record in problems.values():
        for line in filter(None, [record.summary(), *record.warnings]):
            print(line)


def print_examples(training: Mapping[str, Samples], tokenizer, template: Template) -> None:
    """Each task's first, middle and last sample, and the first that was cut, as the model sees them."""
    console = Console(highlight=False)
    for task, samples in training.items():
        chosen = {0, len(samples) // 2, len(samples) - 1, int((samples.truncated > 0).argmax())}
        for index in sorted(chosen):
            sample, image = samples[index], samples.images[index]
            count = f"{len(sample.tokens)} tokens, {sample.supervised.sum()} of them supervised"
            cut = f", {sample.truncated} more cut off" if sample.truncated else ""
            console.rule(Text(f"{task}: {samples.places[index]}"), align="left")
            console.print(Text(f"{count}{cut}" + (f", image {image}" if image else ""), style="italic"))
            console.print(as_seen(sample, tokenizer, template), soft_wrap=True)
    console.print(Text("\nsupervised tokens look like ").append("this", SUPERVISED), end="")
    console.print(Text(", control tokens like ").append("<this>", CONTROL))


def as_seen(sample: Sample, tokenizer, template: Template) -> Text:
    """The text of a sample's tokens, supervised and control tokens in styles of their own."""
    names = {tokenizer.bos_id: "<BOS>", tokenizer.eos_id: "<EOS>", MODALITY: "<modality>", IMAGE: "<image>"}
    names |= {tokenizer.token_id(name): name for name in template.control_tokens}
    tokens = sample.tokens.tolist()
    kinds = [(bool(supervised), names.get(token)) for token, supervised in zip(tokens, sample.supervised, strict=True)]
    text, before = Text(), ""
    for end in range(1, len(tokens) + 1):
        supervised, name = kinds[end - 1]
        if name is None and end < len(tokens) and kinds[end] == kinds[end - 1]:
            continue  # ordinary tokens are decoded together: one may be a part of a character
        decoded = tokenizer.decode([token for token in tokens[:end] if token >= 0])
        styles = [SUPERVISED] * supervised + [CONTROL] * (name is not None)
        text.append(name or decoded[len(before) :], " ".join(styles))
        before = decoded
    return text
