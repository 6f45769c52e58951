"""Captions of images, scored as COCO does (V2 paper, sec 5.2)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.captions import CAPTION_PROMPT
from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation.coco import coco_image_scores, coco_scores
from lav2.evaluation.java import check_metrics, java_scores
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.references import FORMATS, coco_results, read_references
from lav2.evaluation.report import Report, Sample, Score, add_results
from lav2.evaluation.results import Prediction, Results
from lav2.evaluation.shuffled import against_shuffled, gain_card


@dataclass
class CocoCaption:
    """Caption every image of a COCO annotation file and score against its references.

    Besides the scores it leaves ``captions_<split>_results.json``, the captions in COCO's result format. Whether the
    captions depend on the images at all, :func:`lav2.evaluation.shuffled.against_shuffled` says.

    Args:
        annotations, images: the file with the references and the folder of its images.
        format: ``coco``, or ``karpathy`` for ``dataset_coco.json``, on whose test split papers report.
        split: the name of what is scored, which stands beside the scores; default: the file's name. Of Karpathy's file
            the part that is scored (default ``test``).
        prompt: the instruction; default: what the adapter's captions were trained with first.
        metrics: ``METEOR``, ``SPICE``: scores besides BLEU, ROUGE-L and CIDEr that need Java; see
            :mod:`lav2.evaluation.java`.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        on_error, max_bad: what to do with broken images and empty references; see :class:`lav2.data.Problems`.
    """

    annotations: str | Path
    images: str | Path
    format: str = "coco"
    split: str | None = None
    prompt: str | None = None
    metrics: Sequence[str] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    name = "coco_caption"

    def __post_init__(self):
        if self.format not in FORMATS:
            raise UserError(f"eval.format is {self.format!r}; choose one of {', '.join(FORMATS)}")
        check(self.generation, annotations=self.annotations, images=self.images)
        check_metrics(self.metrics)

    def run(self, predictor: Predictor) -> Results:
        problems = Problems("captions", self.on_error, self.max_bad)
        part = self.split or "test"
        images = read_references(Path(self.annotations), Path(self.images), self.format, part, problems)
        if problems.skipped:
            print(problems.summary())
        split = f"karpathy_{part}" if self.format == "karpathy" else self.split or Path(self.annotations).stem

        prompt = self.prompt or next(iter(predictor.caption_prompts), CAPTION_PROMPT)
        captions = caption_images(predictor, [image.path for image in images], prompt, **self.generation)
        said = {image.id: captions[image.path] for image in images}
        references = {image.id: image.captions for image in images}
        scores: dict[str, Any] = coco_scores(references, said)
        if self.metrics:
            scores |= java_scores(references, said, self.metrics)
        scores |= {"split": split, "images": len(images), "skipped": problems.skipped}
        tables = []
        if len(images) > 1:
            found, table = against_shuffled(references, said)
            scores |= found
            tables.append(table)
        predictions = [
            Prediction(image.name, prompt, said[image.id], image.captions, image=str(image.path)) for image in images
        ]
        settings = {"prompt": prompt, "generation": dict(self.generation), "problems": problems.places}
        file = f"captions_{re.sub(r'[^0-9A-Za-z.-]+', '_', split.removeprefix('captions_'))}_results.json"
        return Results(self.name, scores, predictions, settings, tables, files={file: coco_results(said)})

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores and the pictures with their captions, best and worst by CIDEr."""
        shown = ("CIDEr", "Bleu_4", *self.metrics, "ROUGE_L", "Bleu_1")
        cards = [Score(name, results.scores[name], note=results.scores["split"]) for name in shown]
        if "CIDEr_gain" in results.scores:
            cards.insert(1, gain_card(results.scores))
        report = Report("COCO captions", f"{results.scores['split']}, {results.scores['images']:,} images")
        report.scores(cards).gallery(caption_samples(results.predictions))
        return add_results(report, results, run_folder)


def caption_images(predictor: Predictor, images: Sequence[Path], prompt: str, **generation: Any) -> dict[Path, str]:
    """The model's caption of each image."""
    captions = predictor.generate([prompt] * len(images), images, label="captioning", **generation)
    return dict(zip(images, captions, strict=True))


def caption_samples(predictions: Sequence[Prediction]) -> list[Sample]:
    """Captions for a report's gallery, each with its CIDEr."""
    scores = coco_image_scores({p.id: p.references for p in predictions}, {p.id: p.prediction for p in predictions})
    return [Sample(p.image, p.prediction, p.references, score=scores[p.id]["CIDEr"]) for p in predictions]
