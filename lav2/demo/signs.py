"""What experts add (V2 paper, sec 4.4): words and numbers that the image encoder is too coarse to read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from lav2.demo.data import read_scenes
from lav2.demo.evaluation import accuracy
from lav2.demo.scoring import Question, ask, shuffled
from lav2.demo.world import Scene
from lav2.errors import UserError
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Answer, Report, Score, add_results
from lav2.evaluation.report import Question as QuestionCard
from lav2.evaluation.results import Prediction, Results
from lav2.experts import Experts

# A question is asked in four ways; each is a condition in predictions.jsonl and a score.
TEXT, BOTH, IMAGE, OTHER = "text", "both", "image", "other"
LABELS = {
    TEXT: "the experts' texts",
    BOTH: "the image and the experts' texts",
    IMAGE: "the image",
    OTHER: "the texts about another picture",
}


@dataclass
class Signs:
    """What does the sign say? Asked with the experts' texts, with the image and the texts, with the image alone, and
    with the experts' texts about another picture.

    ``accuracy_text``, ``…_both``, ``…_image`` and ``…_other`` are the shares of right answers, also of words and of
    numbers by themselves; ``other_read`` is the share of answers that say the other picture's sign, told of that;
    ``told`` is the share of signs that the experts' texts hold, letter by letter.

    Args:
        folder: ``heldout/`` of a world (:func:`lav2.demo.data.write_world`).
        experts: who is asked.
        question_count: how many questions, one a scene with a sign.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        seed: of the choice of questions and of the shuffling.
    """

    folder: str | Path
    experts: Experts
    question_count: int = 100
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    name = "experts"

    def __post_init__(self):
        check(self.generation, images=self.folder)
        if not self.experts.experts:
            raise UserError("no expert is chosen: name some, for example experts=[signs]")

    def run(self, predictor: Predictor) -> Results:
        folder = Path(self.folder).absolute()
        scenes = read_scenes(folder)
        asked = ask(scenes, self.question_count, self.seed, ("sign",))
        if len(asked) < 2:
            raise UserError(f"{folder} has {len(asked)} pictures with a sign to ask about; draw more held-out scenes")
        images = {question.name: folder / "images" / question.name for question in asked}
        other = shuffled(list(images), self.seed)
        context = self.consult(predictor, asked, images)
        told = [context[question.name] for question in asked]
        contexts = {
            TEXT: told,
            BOTH: told,
            IMAGE: [""] * len(asked),
            OTHER: [context[other[question.name]] for question in asked],
        }
        texts, shown = [question.text for question in asked], list(images.values())
        answers = {
            way: predictor.generate(
                texts,
                shown if way in (BOTH, IMAGE) else None,
                said,
                label=f"answering, {LABELS[way]}",
                **self.generation,
            )
            for way, said in contexts.items()
        }
        scores = self.score(asked, answers, scenes, other)
        scores |= {"told": share(is_told(scenes[name], said) for name, said in context.items())}
        scores |= {"questions": len(asked), "split": "heldout"}
        predictions = [
            Prediction(question.name, question.text, answer, [question.answer], said, str(images[question.name]), way)
            for way in answers
            for question, answer, said in zip(asked, answers[way], contexts[way], strict=True)
        ]
        # which captioner, say, where the config left the choice open
        prints = {one.name: one.fingerprint for one in self.experts.experts if hasattr(one, "fingerprint")}
        settings = {"generation": dict(self.generation), "seed": self.seed, "fingerprints": prints}
        return Results(self.name, scores, predictions, settings)

    def consult(self, predictor: Predictor, asked: Sequence[Question], images: Mapping[str, Path]) -> dict[str, str]:
        """The experts' context for each picture."""
        context = {}
        for question in track(asked, "asking experts"):
            (context[question.name],), _ = self.experts.add_context(
                predictor.assistant, [question.text], [images[question.name]], [""], self.generation
            )
        return context

    def score(
        self,
        asked: Sequence[Question],
        answers: Mapping[str, Sequence[str]],
        scenes: Mapping[str, Scene],
        other: Mapping[str, str],
    ) -> dict[str, Any]:
        """Shares of right answers under each condition."""
        scores: dict[str, Any] = {}
        for way, texts in answers.items():
            pairs = list(zip(asked, texts, strict=True))
            scores[f"accuracy_{way}"] = accuracy(pairs, ("sign",))
            for kind, is_number in (("number", True), ("word", False)):
                of_kind = [pair for pair in pairs if scenes[pair[0].name].sign.text.isdigit() == is_number]
                scores[f"accuracy_{way}_{kind}"] = accuracy(of_kind, ("sign",))
        theirs = {question.name: question for question in asked}
        scores["other_read"] = share(
            theirs[other[question.name]].is_right(answer)
            for question, answer in zip(asked, answers[OTHER], strict=True)
        )
        return scores

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores under each condition, and every picture with its answers."""
        scores = results.scores
        report = Report("Experts", f"{scores['questions']} questions about signs, never trained on with a picture")
        notes = {TEXT: f"they tell {scores['told']:.2f} of the signs", OTHER: f"{scores['other_read']:.2f} read those"}
        report.scores(Score(label, scores[f"accuracy_{way}"], notes.get(way, "")) for way, label in LABELS.items())
        report.questions(question_cards(results.predictions))
        return add_results(report, results, run_folder)


def share(values) -> float:
    """The fraction of true values; 0 of none."""
    values = list(values)
    return sum(values) / max(len(values), 1)


def is_told(scene: Scene, context: str) -> bool:
    """Whether a text holds what the scene's sign says, as a word of its own."""
    return scene.sign.text in re.findall(r"\w+", context)


def question_cards(predictions: Sequence[Prediction]) -> list[QuestionCard]:
    """One card a question, with the answers under each condition."""
    answers: dict[str, dict[str, Prediction]] = {}
    for prediction in predictions:
        answers.setdefault(prediction.id, {})[prediction.condition] = prediction
    cards = []
    for ways in answers.values():
        asked = ways[IMAGE]
        question = Question(asked.id, "sign", asked.prompt, asked.references[0])
        shown = [
            Answer(label, ways[way].prediction, question.is_right(ways[way].prediction))
            for way, label in LABELS.items()
        ]
        cards.append(QuestionCard(asked.image, asked.prompt, shown, asked.references[0]))
    return cards
