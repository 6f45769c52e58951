"""Language-only instructions: how likely the model finds the references, and how close its own answers come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lav2.data.examples import Example
from lav2.data.instructions import read_instructions
from lav2.data.problems import Problems
from lav2.data.tokens import IGNORE, NoRoom, collate, encode
from lav2.errors import UserError
from lav2.evaluation.coco import coco_image_scores, rouge_l
from lav2.evaluation.predict import BATCH_SIZE, Predictor, check, digest
from lav2.evaluation.report import Answer, Question, Report, Score, add_results
from lav2.evaluation.results import Prediction, Results
from lav2.inference import Assistant

NO_ROOM = "prompt without room for a response"


@dataclass
class Instructions:
    """Loss and perplexity (per token of the reference) and ROUGE-L of greedy answers on Alpaca-format files.

    Args:
        files: what to score.
        split: the name of what is scored.
        limit: score this many, evenly spread; ``None`` scores all.
        max_length: tokens of prompt and reference, at most what the model reads; longer references are cut and counted.
        beside_base: also what the base model makes of them without the adapter: scores ``…_base``, and its answers.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
    """

    files: Sequence[str]
    split: str
    limit: int | None = None
    max_length: int = 512
    beside_base: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    name = "instructions"

    def __post_init__(self):
        for path in self.files:
            check(self.generation, instructions=path)

    def run(self, predictor: Predictor) -> Results:
        problems = Problems("instructions", self.on_error, self.max_bad)
        examples = read_instructions(self.files, problems)
        if self.limit is not None:
            count = min(max(1, self.limit), len(examples))
            examples = [examples[place * len(examples) // count] for place in range(count)]
        read = self.read_references(predictor, examples)
        for example, reading in zip(examples, read, strict=True):
            if not reading["tokens"]:
                problems.add(NO_ROOM, example.where)
        if problems.skipped:
            print(problems.summary())
        kept = [(example, reading) for example, reading in zip(examples, read, strict=True) if reading["tokens"]]
        if not kept:
            raise UserError(f"{', '.join(map(str, self.files))}: no instruction is left to score")
        examples, read = (list(column) for column in zip(*kept, strict=True))

        scores, predictions = self.score(predictor, examples, read)
        if self.beside_base:
            base = predictor.bare()
            read_by_base = self.read_references(base, examples)
            beside, answers = self.score(base, examples, read_by_base, condition="base")
            scores |= {f"{name}_base": value for name, value in beside.items()}
            predictions += answers
        scores |= {
            "split": self.split,
            "instructions": len(examples),
            "truncated": sum(reading["truncated"] > 0 for reading in read),
            "skipped": problems.skipped,
        }
        settings = {
            "generation": dict(self.generation),
            "max_length": self.max_length,
            "problems": problems.places,
        }
        return Results(self.name, scores, predictions, settings)

    def score(
        self, predictor: Predictor, examples: Sequence[Example], read: Sequence[dict[str, Any]], condition: str = ""
    ) -> tuple[dict[str, Any], list[Prediction]]:
        """How likely the model finds the references, as :meth:`read_references` says, and its own answers."""
        answers = predictor.generate(
            [example.instruction for example in examples],
            inputs=[example.input for example in examples],
            label=f"answering, {condition}" if condition else "answering",
            **self.generation,
        )
        predictions = [
            Prediction(
                example.where, example.instruction, answer, [example.response], example.input, condition=condition
            )
            for example, answer in zip(examples, answers, strict=True)
        ]
        loss = sum(reading["nats"] for reading in read) / sum(reading["tokens"] for reading in read)
        references = {p.id: p.references for p in predictions}
        scores = {
            "loss": loss,
            "perplexity": math.exp(loss),
            "ROUGE_L": rouge_l(references, {p.id: p.prediction for p in predictions}),
        }
        return scores, predictions

    def read_references(self, predictor: Predictor, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """What the model makes of each reference: ``nats`` over ``tokens``, of which ``truncated`` more were cut."""

        def read(rows: list[int]) -> list[dict[str, Any]]:
            return reference_losses(predictor.assistant, [examples[row] for row in rows], self.max_length)

        keys = [
            digest(predictor.model, "reference", self.max_length, example.instruction, example.input, example.response)
            for example in examples
        ]
        order = sorted(range(len(keys)), key=lambda row: -len(examples[row].response))
        return predictor.values(
            keys, order, read, self.generation.get("batch_size", BATCH_SIZE), label="reading references"
        )

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores, and the instructions with answer and reference, best and worst by ROUGE-L."""
        scores = results.scores
        names = ("loss", "perplexity", "ROUGE_L", "instructions")
        beside = {name: f"base: {scores[f'{name}_base']:.2f}" for name in names if f"{name}_base" in scores}
        cards = [Score(name, scores[name], note=beside.get(name, self.split)) for name in names]
        adapted = [p for p in results.predictions if not p.condition]
        base = {p.id: p.prediction for p in results.predictions if p.condition}
        close = coco_image_scores({p.id: p.references for p in adapted}, {p.id: p.prediction for p in adapted})
        questions = [
            Question(
                None,
                "\n\n".join(filter(None, (p.prompt, p.context))),
                [Answer("answer", p.prediction)] + ([Answer("base model", base[p.id])] if base else []),
                p.references[0],
                score=close[p.id]["ROUGE_L"],
            )
            for p in adapted
        ]
        report = Report("Instructions", f"{self.split}, {results.scores['instructions']:,} instructions")
        return add_results(report.scores(cards).questions(questions), results, run_folder)


@torch.inference_mode()
def reference_losses(assistant: Assistant, examples: Sequence[Example], max_length: int) -> list[dict[str, Any]]:
    """The negative log-likelihood of each reference, summed over its ``tokens``; 0 tokens where the prompt leaves no
    room for one."""
    max_length = min(max_length, assistant.model.llama.config.max_length)
    losses = [{"nats": 0.0, "tokens": 0, "truncated": 0} for _ in examples]
    samples = {}
    for row, example in enumerate(examples):
        segments = assistant.template.render(example.turns, example.system)
        try:
            samples[row] = encode(assistant.tokenizer, segments, max_length, assistant.prefix(has_image=False))
        except NoRoom:
            continue
    if not samples:
        return losses
    batch = {name: value.to(assistant.device) for name, value in collate(list(samples.values())).items()}
    hidden = assistant.model.hidden(batch["tokens"][:, :-1])  # (B, T-1, C)
    labels = batch["labels"][:, 1:]
    for place, (row, sample) in enumerate(samples.items()):
        labelled = labels[place] != IGNORE
        logits = assistant.model.llama.logits(hidden[place, labelled]).float()  # (labelled tokens, V)
        nats = F.cross_entropy(logits, labels[place, labelled], reduction="sum")
        losses[row] = {"nats": float(nats), "tokens": int(labelled.sum()), "truncated": sample.truncated}
    return losses
