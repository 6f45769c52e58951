"""What a model of the embedded world makes of texts alone: its language ability, whatever it has learnt to see."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.examples import Example
from lav2.demo.data import read_scenes
from lav2.demo.facts import FACTS, LISTS
from lav2.demo.language import question_task, vary_sign
from lav2.demo.scoring import normalised
from lav2.evaluation.instructions import Instructions
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Answer, Question, Report, Score, add_results
from lav2.evaluation.results import Prediction, Results

TEXTS, FACT = "texts", "facts"


@dataclass
class Language:
    """Language-only instructions with one right answer, and no image anywhere.

    ``exact_match`` is the share of questions about descriptions of held-out scenes that are answered word for word
    (case and punctuation apart), ``facts`` the same of small facts and lists, which training shows too; ``loss`` is in
    nats a token of the right answers to both.

    Args:
        folder: ``heldout/`` of a world (:func:`lav2.demo.data.write_world`).
        question_count: how many questions about descriptions.
        fact_count: how many facts and lists.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        seed: of the choice of what is asked.
    """

    folder: str | Path
    question_count: int = 200
    fact_count: int = 50
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    name = "language"

    def __post_init__(self):
        check(self.generation, images=self.folder)

    def ask(self) -> list[Example]:
        """What is asked; the same for the same settings."""
        rng = random.Random(f"{self.seed} language")
        scenes = list(read_scenes(Path(self.folder)).values())
        told = [question_task(vary_sign(rng.choice(scenes), rng), rng) for _ in range(self.question_count)]
        known = [(question, "", answer) for question, answer in rng.sample(FACTS + LISTS, self.fact_count)]
        return [
            Example(question, text, answer, key=kind, where=f"{kind} {number}")
            for kind, members in ((TEXTS, told), (FACT, known))
            for number, (question, text, answer) in enumerate(members)
        ]

    def run(self, predictor: Predictor) -> Results:
        asked = self.ask()
        read = Instructions([], "", generation=self.generation).read_references(predictor, asked)
        answers = predictor.generate(
            [one.instruction for one in asked], inputs=[one.input for one in asked], **self.generation
        )
        pairs = list(zip(asked, answers, strict=True))
        scores = {
            "exact_match": exact_match([pair for pair in pairs if pair[0].key == TEXTS]),
            "facts": exact_match([pair for pair in pairs if pair[0].key == FACT]),
            "loss": sum(one["nats"] for one in read) / max(1, sum(one["tokens"] for one in read)),
            "questions": self.question_count,
            "split": "heldout",
        }
        predictions = [
            Prediction(one.where, one.instruction, answer, [one.response], one.input) for one, answer in pairs
        ]
        return Results(self.name, scores, predictions, {"generation": dict(self.generation), "seed": self.seed})

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores, and every question with its answer."""
        names = ("exact_match", "facts", "loss")
        report = Report("Language", f"{results.scores['questions']} questions about written descriptions, and facts")
        report.scores(Score(name, results.scores[name]) for name in names)
        report.questions(
            [
                Question(
                    None,
                    "\n\n".join(filter(None, (one.prompt, one.context))),
                    [Answer("answer", one.prediction, same(one.prediction, one.references[0]))],
                    one.references[0],
                )
                for one in results.predictions
            ]
        )
        return add_results(report, results, run_folder)


def exact_match(pairs: Sequence[tuple[Example, str]]) -> float:
    """The share of answers that are the reference."""
    return sum(same(answer, example.response) for example, answer in pairs) / max(1, len(pairs))


def same(answer: str, reference: str) -> bool:
    return normalised(answer.strip()) == normalised(reference.strip())
