"""Whether the turns before reach the model, and leave it what it knows without them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.examples import Turn
from lav2.demo.data import read_scenes
from lav2.demo.dialogues import follow_up
from lav2.demo.scoring import ask, normalised
from lav2.evaluation.predict import BATCH_SIZE, Predictor, check, digest, stamp
from lav2.evaluation.report import Report, Score, add_results
from lav2.evaluation.results import Prediction, Results

OWN, ALONE, OTHER = "own turns", "alone", "another's turns"  # what stands before a follow-up
DIRECT, CAPTION = "at once", "after its caption"  # when a question about a picture is asked


@dataclass
class Dialogues:
    """Follow-ups about written descriptions ("What color is it?"), asked after their own turns, alone, and after the
    turns of another conversation; and questions about pictures, asked at once and after the model's caption as a turn.

    ``follow_up_accuracy``, ``…_alone`` and ``…_other`` are the shares of right answers, as are ``question_accuracy``
    and ``question_accuracy_after_caption``.

    Args:
        folder: ``heldout/`` of a world (:func:`lav2.demo.data.write_world`).
        follow_up_count, question_count: the most of each, one a scene.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        seed: of the choice of conversations and questions.
    """

    folder: str | Path
    follow_up_count: int = 200
    question_count: int = 100
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    name = "dialogues"

    def __post_init__(self):
        check(self.generation, images=self.folder)

    def run(self, predictor: Predictor) -> Results:
        folder = Path(self.folder).absolute()
        scenes = read_scenes(folder)
        rng = random.Random(self.seed)
        told = [follow_up(scene, rng) for scene in list(scenes.values())[: self.follow_up_count]]
        asked = ask(scenes, self.question_count, self.seed, ("color", "shape"))
        images = [folder / "images" / question.name for question in asked]
        captions = predictor.generate([predictor.caption_prompts[0]] * len(asked), images, **self.generation)

        predictions = []
        for condition, before in ((OWN, told), (ALONE, [[]] * len(told)), (OTHER, told[1:] + told[:1])):
            last = [turns[-1] for turns in told]
            talks = [[*turns[:-1], Turn(one.instruction)] for turns, one in zip(before, last, strict=True)]
            answers = self.converse(predictor, talks, [None] * len(talks), condition)
            predictions += [
                Prediction(str(number), one.instruction, answer, [one.response], spoken(talk[:-1]), condition=condition)
                for number, (talk, answer, one) in enumerate(zip(talks, answers, last, strict=True))
            ]
        for condition in (DIRECT, CAPTION):
            turns = [[Turn(predictor.caption_prompts[0], "", caption)] * (condition == CAPTION) for caption in captions]
            talks = [[*before, Turn(one.text)] for before, one in zip(turns, asked, strict=True)]
            answers = self.converse(predictor, talks, images, condition)
            predictions += [
                Prediction(one.name, one.text, answer, [one.answer], spoken(talk[:-1]), str(image), condition)
                for one, talk, answer, image in zip(asked, talks, answers, images, strict=True)
            ]
        scores = {
            "follow_up_accuracy": accuracy(predictions, OWN),
            "follow_up_accuracy_alone": accuracy(predictions, ALONE),
            "follow_up_accuracy_other": accuracy(predictions, OTHER),
            "question_accuracy": accuracy(predictions, DIRECT),
            "question_accuracy_after_caption": accuracy(predictions, CAPTION),
        }
        scores |= {"follow_ups": len(told), "questions": len(asked), "split": "heldout"}
        return Results(self.name, scores, predictions, {"generation": dict(self.generation), "seed": self.seed})

    def converse(
        self, predictor: Predictor, talks: Sequence[list[Turn]], images: Sequence[Path | None], label: str
    ) -> list[str]:
        """The answer to the last turn of each conversation."""
        settings = {name: value for name, value in self.generation.items() if name != "batch_size"}
        batch_size = self.generation.get("batch_size", BATCH_SIZE)
        keys = [
            digest(predictor.model, "conversation", settings, spoken(talk), stamp(image))
            for talk, image in zip(talks, images, strict=True)
        ]

        def answer(rows: list[int]) -> list[str]:
            assistant = predictor.assistant
            features = assistant.encode_images([images[row] for row in rows if images[row] is not None])
            visual = [None if images[row] is None else next(features) for row in rows]
            prompts = [assistant.template.render(talks[row]) for row in rows]
            return assistant.answer(prompts, visual, batch_size, rows, **settings)

        return predictor.values(keys, range(len(talks)), answer, batch_size, f"answering, {label}")

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores beside each other."""
        scores = results.scores
        report = Report(
            "Conversations", f"{scores['follow_ups']} follow-ups on texts, {scores['questions']} on pictures"
        )
        alone, other = scores["follow_up_accuracy_alone"], scores["follow_up_accuracy_other"]
        report.scores(
            [
                Score("follow-ups", scores["follow_up_accuracy"], f"alone: {alone:.2f}, another's turns: {other:.2f}"),
                Score("questions about pictures", scores["question_accuracy"]),
                Score("… after its own caption", scores["question_accuracy_after_caption"]),
            ]
        )
        return add_results(report, results, run_folder)


def spoken(talk: Sequence[Turn]) -> str:
    """A conversation as a person would write it down."""
    lines = [(f"Q: {turn.instruction}", turn.response and f"A: {turn.response}") for turn in talk]
    return "\n".join(text for pair in lines for text in pair if text)


def accuracy(predictions: Sequence[Prediction], condition: str) -> float:
    """The share of right answers under a condition."""
    right = [is_right(one) for one in predictions if one.condition == condition]
    return sum(right) / max(len(right), 1)


def is_right(prediction: Prediction) -> bool:
    return normalised(prediction.prediction.strip()) == normalised(prediction.references[0])
