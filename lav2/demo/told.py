"""What right and wrong experts do (V2 paper, sec 4.4): questions about pictures with texts that tell, or mislead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.demo.data import read_scenes
from lav2.demo.evaluation import KINDS, accuracy
from lav2.demo.scoring import Question, ask, shuffled
from lav2.demo.world import Scene
from lav2.evaluation.captions import caption_images
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Report, Score, add_results
from lav2.evaluation.results import Prediction, Results

IMAGE, TEXT, BOTH, OTHER, BOTH_OTHER = "image", "text", "both", "other", "both_other"
CAPTION, SIGN = "caption", "sign"  # the experts


@dataclass
class Told:
    """Two experts, each on the questions it should help with: the model's own captions on colors, shapes and places,
    and an OCR that reads every sign on what signs say.

    ``<expert>_image`` is the share of right answers from the image alone; ``…_text`` from the expert's text alone;
    ``…_both`` from both; ``…_other`` from its text about another picture, and ``…_both_other`` from the image and that.

    Args:
        folder: ``heldout/`` of a world (:func:`lav2.demo.data.write_world`).
        question_count: how many questions for each expert, one a scene; fewer if fewer scenes have a sign.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        seed: of the choice of questions and of the shuffling.
    """

    folder: str | Path
    question_count: int = 100
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    name = "told"

    def __post_init__(self):
        check(self.generation, images=self.folder)

    def run(self, predictor: Predictor) -> Results:
        folder = Path(self.folder).absolute()
        scenes = read_scenes(folder)
        scores: dict[str, Any] = {}
        predictions: list[Prediction] = []
        for expert, kinds in ((CAPTION, KINDS["question"]), (SIGN, ("sign",))):
            asked = ask(scenes, self.question_count, self.seed, kinds)
            images = {question.name: folder / "images" / question.name for question in asked}
            context = self.signs(scenes, images) if expert == SIGN else self.captions(predictor, images)
            answers = self.answer(predictor, asked, images, context)
            for way, (texts, said) in answers.items():
                pairs = list(zip(asked, texts, strict=True))
                scores[f"{expert}_{way}"] = accuracy(pairs, kinds)
                predictions += [
                    Prediction(
                        f"{question.name} {question.kind}",
                        question.text,
                        text,
                        [question.answer],
                        context=words,
                        image=str(images[question.name]),
                        condition=f"{expert} {way}",
                    )
                    for (question, text), words in zip(pairs, said, strict=True)
                ]
            scores[f"{expert}_questions"] = len(asked)
        scores["split"] = "heldout"
        return Results(self.name, scores, predictions, {"generation": dict(self.generation), "seed": self.seed})

    def captions(self, predictor: Predictor, images: Mapping[str, Path]) -> dict[str, str]:
        """What the model itself says about each picture, short and in detail."""
        said = [
            caption_images(predictor, list(images.values()), p, **self.generation) for p in predictor.caption_prompts
        ]
        return {name: " ".join(texts[path] for texts in said) for name, path in images.items()}

    def signs(self, scenes: Mapping[str, Scene], images: Mapping[str, Path]) -> dict[str, str]:
        """What an OCR that makes no mistake would say."""
        return {name: f"Text on the sign: {scenes[name].sign.text}" for name in images}

    def answer(
        self,
        predictor: Predictor,
        asked: Sequence[Question],
        images: Mapping[str, Path],
        context: Mapping[str, str],
    ) -> dict[str, tuple[list[str], list[str]]]:
        """The answers under each condition, and the text that was given with each question."""
        other = shuffled(list(images), self.seed)
        texts, shown = [question.text for question in asked], [images[question.name] for question in asked]
        own = [context[question.name] for question in asked]
        wrong = [context[other[question.name]] for question in asked]
        ways = {
            IMAGE: (shown, [""] * len(asked)),
            TEXT: (None, own),
            BOTH: (shown, own),
            OTHER: (None, wrong),
            BOTH_OTHER: (shown, wrong),
        }
        return {
            way: (predictor.generate(texts, seen, said, label=f"answering, {way}", **self.generation), said)
            for way, (seen, said) in ways.items()
        }

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores under each condition."""
        ways = (IMAGE, TEXT, BOTH, OTHER, BOTH_OTHER)
        report = Report("Experts, right and wrong", "questions about held-out scenes, never trained on with a picture")
        report.scores(Score(f"{one}, {way}", results.scores[f"{one}_{way}"]) for one in (CAPTION, SIGN) for way in ways)
        return add_results(report, results, run_folder)
