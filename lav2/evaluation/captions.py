"""Captions of images, scored as COCO does (V2 paper, sec 5.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from lav2.data.captions import CaptionSource, read_captions
from lav2.data.images import image_fault, load_image
from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation.coco import coco_image_scores, coco_scores
from lav2.evaluation.report import Report, Sample, Score, add_run
from lav2.evaluation.results import Prediction, Results
from lav2.inference import Assistant


def require(**paths: str | Path | None) -> None:
    """Refuse paths that are not set or lead nowhere, all of them in one message.

    Raises:
        UserError: names them as ``paths.<name>``, the setting that gives them.
    """
    missing = [f"paths.{name} is {path}" for name, path in paths.items() if path is None or not Path(path).exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: name existing files and folders to score")


@dataclass
class CocoCaption:
    """Caption every image of a COCO annotation file and score against its references.

    Args:
        annotations, images: the COCO file and the folder of its images.
        split: the name of what is scored, which stands beside the scores.
        prompt: the instruction; default: what the adapter's captions were trained with first.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        on_error, max_bad: what to do with broken images and empty references; see :class:`lav2.data.Problems`.
    """

    annotations: str | Path
    images: str | Path
    split: str
    prompt: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    def __post_init__(self):
        require(annotations=self.annotations, images=self.images)

    def run(self, assistant: Assistant) -> Results:
        prompt = self.prompt or assistant.caption_prompts[0]
        references, problems = read_references(self)
        captions = caption_images(assistant, list(references), prompt, **self.generation)
        names = {path: str(path.relative_to(Path(self.images).absolute())) for path in references}
        scores = coco_scores(
            {names[path]: texts for path, texts in references.items()},
            {names[path]: captions[path] for path in references},
        )
        predictions = [
            Prediction(names[path], prompt, captions[path], texts, image=str(path))
            for path, texts in references.items()
        ]
        counts = {"split": self.split, "images": len(references), "skipped": problems.skipped}
        settings = {"prompt": prompt, "generation": dict(self.generation), "problems": problems.places}
        return Results("coco_caption", scores | counts, predictions, settings)

    def report(self, results: Results, run_folder: Path) -> Report:
        """The scores and every picture with its caption, best and worst by CIDEr."""
        cards = [Score(name, results.scores[name]) for name in ("CIDEr", "Bleu_4", "ROUGE_L", "Bleu_1", "images")]
        report = Report("COCO captions", f"{self.split}, {results.scores['images']:,} images")
        report.scores(cards).gallery(caption_samples(results.predictions))
        return add_run(report, run_folder).details(results.settings)


def read_references(source: CocoCaption) -> tuple[dict[Path, list[str]], Problems]:
    """Image → its reference captions; images that cannot be read and empty captions are named and counted."""
    problems = Problems("captions", source.on_error, source.max_bad)
    references: dict[Path, list[str]] = {}
    for example in read_captions([CaptionSource(source.annotations, source.images)], problems):
        references.setdefault(example.image, []).append(example.response)
    for path in list(references):
        try:
            load_image(path)
        except OSError as error:
            problems.add(image_fault(error), str(path), samples=len(references.pop(path)))
    if not references:
        raise UserError(f"{source.annotations} has no caption of a readable image in {source.images}")
    if problems.skipped:
        print(problems.summary())
    return references, problems


def caption_images(
    assistant: Assistant, images: Sequence[Path], prompt: str, batch_size: int = 32, **generation: Any
) -> dict[Path, str]:
    """The model's caption of each image, with a progress bar."""
    captions: dict[Path, str] = {}
    for start in track(range(0, len(images), batch_size), "captioning"):
        batch = images[start : start + batch_size]
        captions |= zip(batch, assistant.generate([prompt] * len(batch), batch, **generation), strict=True)
    return captions


def caption_samples(predictions: Sequence[Prediction]) -> list[Sample]:
    """Captions for a report's gallery, each with its CIDEr."""
    scores = coco_image_scores({p.id: p.references for p in predictions}, {p.id: p.prediction for p in predictions})
    return [Sample(p.image, p.prediction, p.references, score=scores[p.id]["CIDEr"]) for p in predictions]
