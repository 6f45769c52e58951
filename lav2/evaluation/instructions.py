"""Language-only instructions: how likely the model finds the references, and how close its own answers come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lav2.data.instructions import read_instructions
from lav2.data.problems import Problems
from lav2.data.tokens import IGNORE, NoRoom, collate, encode
from lav2.evaluation.captions import require
from lav2.evaluation.coco import rouge_l
from lav2.evaluation.report import Answer, Question, Report, Score, add_run
from lav2.evaluation.results import Prediction, Results
from lav2.inference import Assistant
from lav2.training.loss import response_loss


@dataclass
class Instructions:
    """Loss and perplexity (per token of the reference) and ROUGE-L of greedy answers on Alpaca-format files.

    Args:
        files: what to score.
        split: the name of what is scored.
        limit: score this many, evenly spread; ``None`` scores all.
        max_length: tokens of prompt and reference; longer references are cut and counted.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
    """

    files: Sequence[str]
    split: str
    limit: int | None = None
    max_length: int = 512
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    def __post_init__(self):
        for path in self.files:
            require(instructions=path)

    def run(self, assistant: Assistant) -> Results:
        problems = Problems("instructions", self.on_error, self.max_bad)
        examples = read_instructions(self.files, problems)
        if self.limit is not None:
            examples = examples[:: max(1, len(examples) // max(1, self.limit))][: self.limit]
        max_length = min(self.max_length, assistant.model.llama.config.max_length)
        kept, samples = [], []
        for example in examples:
            segments = assistant.template.render(example.turns, example.system)
            try:
                samples.append(encode(assistant.tokenizer, segments, max_length))
                kept.append(example)
            except NoRoom as error:
                problems.add("prompt without room for a response", f"{example.where}: {error}")

        nats = tokens = 0.0
        batch_size = self.generation.get("batch_size", 32)
        for start in track(range(0, len(samples), batch_size), "reading references"):
            batch = {k: v.to(assistant.device) for k, v in collate(samples[start : start + batch_size]).items()}
            count = int((batch["labels"][:, 1:] != IGNORE).sum())
            with torch.inference_mode():
                nats += float(response_loss(assistant.model, batch, None)) * count
            tokens += count

        answers: list[str] = []
        for start in track(range(0, len(kept), batch_size), "answering"):
            batch = kept[start : start + batch_size]
            answers += assistant.generate(
                [example.instruction for example in batch],
                inputs=[example.input for example in batch],
                **self.generation,
            )
        predictions = [
            Prediction(example.where, example.instruction, answer, [example.response], context=example.input)
            for example, answer in zip(kept, answers, strict=True)
        ]
        loss = nats / max(tokens, 1)
        scores = {
            "loss": loss,
            "perplexity": math.exp(loss),
            "ROUGE_L": rouge_l({p.id: p.references for p in predictions}, {p.id: p.prediction for p in predictions}),
            "split": self.split,
            "instructions": len(kept),
            "truncated": sum(sample.truncated > 0 for sample in samples),
            "skipped": problems.skipped,
        }
        settings = {"generation": dict(self.generation), "max_length": max_length, "problems": problems.places}
        return Results("instructions", scores, predictions, settings)

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores, and each instruction with the answer and the reference."""
        cards = [Score(name, results.scores[name]) for name in ("loss", "perplexity", "ROUGE_L", "instructions")]
        questions = [
            Question(
                None,
                "\n\n".join(filter(None, (p.prompt, p.context))),
                [Answer("answer", p.prediction)],
                p.references[0],
            )
            for p in results.predictions
        ]
        report = Report("Instructions", f"{self.split}, {results.scores['instructions']:,} instructions")
        return add_run(report.scores(cards).questions(questions), run_folder).details(results.settings)
