"""What a model trained on the embedded world has learnt to see, on scenes it has never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.captions import CaptionSource, read_captions
from lav2.data.problems import Problems
from lav2.demo.data import read_scenes
from lav2.demo.scoring import Question, ask, caption_scores, shuffled
from lav2.evaluation.captions import caption_images, caption_samples
from lav2.evaluation.coco import coco_scores
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Answer, Report, Score, add_results
from lav2.evaluation.report import Question as QuestionCard
from lav2.evaluation.results import Prediction, Results

# Training never asks any of these about an image. Questions with two possible answers are scored apart, since half of
# them come right by guessing; "sign" is left out, for the encoder is too coarse to read.
KINDS = {"question": ("color", "shape", "where"), "two_way": ("size", "count", "there")}
# A question is asked in three ways; each is a condition in predictions.jsonl and a score.
IMAGE, CAPTION, BLIND = "image", "caption", "blind"
SUFFIXES = {IMAGE: "", CAPTION: "_caption", BLIND: "_blind"}


@dataclass
class Scenes:
    """Captions of held-out scenes, and zero-shot questions about them: open ones, and two-way ones apart.

    Captions get COCO's scores and those of :func:`lav2.demo.scoring.caption_scores`, also with the images shuffled
    among the scenes (``…_shuffled``). ``question_accuracy`` is of answers from the image alone, ``…_caption`` of
    answers with the model's own captions as context (the caption expert of sec 4.4), ``…_blind`` of answers from
    another scene's image.

    Args:
        folder: ``heldout/`` of a world (:func:`lav2.demo.data.write_world`).
        question_count: how many open questions, and half as many two-way ones; one of each a scene.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        seed: of the choice of questions and of the shuffling.
        limit: look at this many scenes, the first; ``None`` looks at all.
    """

    folder: str | Path
    question_count: int = 100
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None

    name = "demo"

    def __post_init__(self):
        check(self.generation, images=self.folder)

    def run(self, predictor: Predictor) -> Results:
        folder = Path(self.folder).absolute()
        scenes = dict(list(read_scenes(folder).items())[: self.limit])
        images = {name: folder / "images" / name for name in scenes}
        captions, details = (self.describe(predictor, images, prompt) for prompt in predictor.caption_prompts)

        references: dict[str, list[str]] = {name: [] for name in scenes}
        source = CaptionSource(folder / "captions.json", folder / "images")
        for example in read_captions([source], Problems("captions", "raise")):
            if example.image.name in references:
                references[example.image.name].append(example.response)
        other = shuffled(list(scenes), self.seed)
        seen, unseen = caption_scores(captions, scenes), caption_scores({n: captions[other[n]] for n in scenes}, scenes)
        scores = coco_scores(references, captions)
        scores |= seen | {f"{name}_shuffled": unseen[name] for name in ("color_shape_f1", "relation_accuracy")}

        groups = {
            "question": ask(scenes, self.question_count, self.seed, KINDS["question"]),
            "two_way": ask(scenes, self.question_count // 2, self.seed, KINDS["two_way"]),
        }
        asked = [question for group in groups.values() for question in group]
        context = {name: f"{captions[name]} {details[name]}" for name in scenes}
        answers = self.answer(predictor, asked, images, other, context)
        for condition, suffix in SUFFIXES.items():
            pairs = list(zip(asked, answers[condition], strict=True))
            for group, kinds in KINDS.items():
                scores[f"{group}_accuracy{suffix}"] = accuracy(pairs, kinds)
                scores |= {f"{group}_accuracy{suffix}_{kind}": accuracy(pairs, (kind,)) for kind in kinds}
        scores |= {"scenes": len(scenes)} | {f"{group}s": len(members) for group, members in groups.items()}
        scores["split"] = "heldout"

        predictions = [
            Prediction(name, predictor.caption_prompts[0], captions[name], references[name], image=str(images[name]))
            for name in scenes
        ]
        for condition, texts in answers.items():
            for question, text in zip(asked, texts, strict=True):
                shown = images[other[question.name] if condition == BLIND else question.name]
                said = context[question.name] if condition == CAPTION else ""
                name = f"{question.name} {question.kind}"
                predictions.append(
                    Prediction(name, question.text, text, [question.answer], said, str(shown), condition)
                )
        settings = {"caption_prompts": predictor.caption_prompts, "generation": dict(self.generation)}
        return Results(self.name, scores, predictions, settings | {"seed": self.seed})

    def report(self, results: Results, run_folder: Path) -> Report:
        """Scores beside their baselines, pictures with captions, questions with answers, training curves."""
        scores = results.scores

        def card(name: str, score: str, beside: str = "", baseline: str = "") -> Score:
            return Score(name, scores[score], note=f"{beside}: {scores[baseline]:.2f}" if beside else "")

        report = Report(
            "LLaMA-Adapter V2 on the embedded world",
            f"{scores['scenes']} held-out scenes; trained on captions and language-only instructions, "
            "never on a question about an image",
        )
        report.scores(
            [
                card("colors and shapes (F1)", "color_shape_f1", "images shuffled", "color_shape_f1_shuffled"),
                card("stated relations that hold", "relation_accuracy", "guessing", "relation_chance"),
                card("questions, from the image", "question_accuracy", "blind", "question_accuracy_blind"),
                card("questions, own caption as context", "question_accuracy_caption"),
                card("CIDEr", "CIDEr"),
                card("BLEU-4", "Bleu_4"),
            ]
        )
        captions = [p for p in results.predictions if not p.condition]
        report.gallery(caption_samples(captions), title="Captions of scenes it has never seen", limit=24)
        report.questions(question_cards(results.predictions), title="Questions it was never trained on")
        kinds = [
            [kind, *(scores[f"{group}_accuracy{suffix}_{kind}"] for suffix in SUFFIXES.values())]
            for group, members in KINDS.items()
            for kind in members
        ]
        report.table(
            ["question", "from the image", "own caption as context", "blind"], kinds, title="By kind of question"
        )
        return add_results(report, results, run_folder)

    def describe(self, predictor: Predictor, images: Mapping[str, Path], prompt: str) -> dict[str, str]:
        captions = caption_images(predictor, list(images.values()), prompt, **self.generation)
        return {name: captions[path] for name, path in images.items()}

    def answer(
        self,
        predictor: Predictor,
        asked: Sequence[Question],
        images: Mapping[str, Path],
        other: Mapping[str, str],
        context: Mapping[str, str],
    ) -> dict[str, list[str]]:
        """The answers under each condition."""
        texts = [question.text for question in asked]
        own = [images[question.name] for question in asked]
        blind = [images[other[question.name]] for question in asked]
        told = [context[question.name] for question in asked]
        return {
            IMAGE: predictor.generate(texts, own, **self.generation),
            CAPTION: predictor.generate(texts, inputs=told, label="answering, own captions", **self.generation),
            BLIND: predictor.generate(texts, blind, label="answering, blind", **self.generation),
        }


def accuracy(answers: Sequence[tuple[Question, str]], kinds: Sequence[str]) -> float:
    """The fraction of right answers among the questions of ``kinds``."""
    right = [question.is_right(answer) for question, answer in answers if question.kind in kinds]
    return sum(right) / max(len(right), 1)


def question_cards(predictions: Sequence[Prediction]) -> list[QuestionCard]:
    """One card a question, with the answers under the three conditions."""
    answers: dict[str, dict[str, Prediction]] = {}
    for prediction in predictions:
        if prediction.condition:
            answers.setdefault(prediction.id, {})[prediction.condition] = prediction
    cards = []
    for ways in answers.values():
        asked = ways[IMAGE]
        name, kind = asked.id.split(" ")
        question = Question(name, kind, asked.prompt, asked.references[0])
        shown = [
            Answer(label, ways[way].prediction, question.is_right(ways[way].prediction))
            for way, label in ((IMAGE, "from the image"), (CAPTION, "own caption"), (BLIND, "blind"))
        ]
        cards.append(QuestionCard(asked.image, asked.prompt, shown, asked.references[0]))
    return cards
