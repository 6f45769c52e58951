"""MME: two yes-or-no questions on each image, scored by category (arXiv 2306.13394)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.data.images import check_images
from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Report, Sample, Score, add_results
from lav2.evaluation.results import Prediction, Results, ScoreTable

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUFFIXES = (".jpg", ".png", ".jpeg")
# perception, cognition, on the whole of MME
PUBLISHED = {
    "LLaMA-Adapter V2": (972.67, 249.0),  # MME's leaderboard; LLaMA-Adapter, arXiv 2303.16199v2, gives 973 and 249
    "LLaMA-Adapter V2.1": (1326.09, 356.43),  # the authors' release notes
    "LaVIN-13B": (963.60, None),  # MME's leaderboard
}


@dataclass(frozen=True)
class MMEQuestion:
    """A question on an image, to be answered with ``yes`` or ``no``."""

    category: str
    image: Path
    name: str
    question: str
    answer: str


def read_mme(data: Path, images: Path | None, problems: Problems) -> list[MMEQuestion]:
    """The questions of MME's own folder, or of a flattened json file; bad ones go to ``problems``.

    An image without two questions is left out, for its accuracy+ would mean nothing.

    Args:
        data: the folder with one folder a category, each with images and texts of the same names (also in ``images/``
            and ``questions_answers_YN/``); a line of a text is question, tab, answer. Or a file
            ``[{"image_path", "question", "dataset_name": "MME_<category>", "gt_answers"}]``.
        images: where a file's image paths start; default: the file's folder.

    Raises:
        UserError: there is no such file or folder, or it holds nothing of MME.
    """
    found = _read_folder(data) if data.is_dir() else _read_file(data, images or data.parent)
    problems.total += len(found)
    sound = []
    for question in found:
        if question.category not in PERCEPTION + COGNITION:
            problems.add("unknown category", f"{question.category}, {question.name}")
        elif not question.question or question.answer not in ("yes", "no"):
            problems.add("line that is no question with yes or no", f"{question.name}: {question.question}")
        else:
            sound.append(question)
    asked = Counter((question.category, question.image) for question in sound)
    kept = []
    for question in sound:
        if asked[question.category, question.image] == 2:
            kept.append(question)
        else:
            problems.add("image without two questions", f"{question.name}: {question.question}")
    if not kept:
        raise UserError(f"{data} holds no question of MME")
    return kept


def _read_folder(folder: Path) -> list[MMEQuestion]:
    found = []
    for category in PERCEPTION + COGNITION:
        texts, images = folder / category / "questions_answers_YN", folder / category / "images"
        if not texts.is_dir():
            texts = images = folder / category
        for text in sorted(texts.glob("*.txt")):
            candidates = [images / f"{text.stem}{suffix}" for suffix in SUFFIXES]
            image = next((path for path in candidates if path.is_file()), candidates[0])
            for line in filter(str.strip, text.read_text(encoding="utf-8").splitlines()):
                question, _, answer = line.rpartition("\t")
                name = str(image.relative_to(folder))
                found.append(MMEQuestion(category, image, name, question.strip(), answer.strip().lower()))
    return found


def _read_file(path: Path, images: Path) -> list[MMEQuestion]:
    try:
        return [
            MMEQuestion(
                entry["dataset_name"].removeprefix("MME_"),
                images / entry["image_path"],
                entry["image_path"],
                entry["question"].strip(),
                entry["gt_answers"].strip().lower(),
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f'{path} is no MME file: expected [{{"image_path", "question", "dataset_name", "gt_answers"}}, …]'
        ) from None


def read_yes_no(answer: str) -> str:
    """``yes``, ``no`` or ``other``, by the rule of MME's own evaluation: the word must stand within the first four
    characters (which reads "Not sure" as no)."""
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def category_scores(questions: Sequence[MMEQuestion], said: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each category that is there, in percent: ``accuracy`` over questions, ``accuracy_plus`` over images of which
    both are right, and ``score``, their sum, at most 200."""
    right: dict[str, dict[Path, list[bool]]] = {}
    for question, answer in zip(questions, said, strict=True):
        by_image = right.setdefault(question.category, {})
        by_image.setdefault(question.image, []).append(answer == question.answer)
    scores = {}
    for category in (name for name in PERCEPTION + COGNITION if name in right):
        pairs = list(right[category].values())
        accuracy = 100 * sum(map(sum, pairs)) / sum(map(len, pairs))
        plus = 100 * sum(map(all, pairs)) / len(pairs)
        scores[category] = {"accuracy": accuracy, "accuracy_plus": plus, "score": accuracy + plus}
    return scores


@dataclass
class MME:
    """Perception (at most 2,000) and cognition (at most 800) on MME, by category.

    Questions are asked as they stand. An answer that is neither yes nor no is wrong and counted in ``other``.

    Args:
        data, images: see :func:`read_mme`.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        on_error, max_bad: what to do with bad questions and broken images; see :class:`lav2.data.Problems`.
    """

    data: str | Path
    images: str | Path | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    name = "mme"

    def __post_init__(self):
        check(self.generation, mme=self.data, **({} if self.images is None else {"images": self.images}))

    def run(self, predictor: Predictor) -> Results:
        problems = Problems("questions", self.on_error, self.max_bad)
        questions = self.readable_questions(problems)
        answers = predictor.generate(
            [question.question for question in questions], [question.image for question in questions], **self.generation
        )
        said = [read_yes_no(answer) for answer in answers]
        categories = category_scores(questions, said)
        totals = {
            name: sum(found) if (found := [categories[one]["score"] for one in members if one in categories]) else None
            for name, members in {"perception": PERCEPTION, "cognition": COGNITION}.items()
        }
        missing = [category for category in PERCEPTION + COGNITION if category not in categories]
        scores: dict[str, Any] = totals | {category: values["score"] for category, values in categories.items()}
        scores |= {"split": Path(self.data).stem, "questions": len(questions)}
        scores |= {"other": said.count("other"), "skipped": problems.skipped}
        if missing:
            scores["missing"] = ", ".join(missing)
        predictions = [
            Prediction(
                f"{question.name} {question.question}",
                question.question,
                answer,
                [question.answer],
                image=str(question.image),
                condition=label,
            )
            for question, answer, label in zip(questions, answers, said, strict=True)
        ]
        images = Counter(question.category for question in questions)
        this_run = (
            f"this run, {len(categories)} categories of {len(categories) + len(missing)}" if missing else "this run"
        )
        tables = [
            ScoreTable(
                "by category",
                ["category", "images", "accuracy", "accuracy+", "score"],
                [[name, images[name] // 2, *values.values()] for name, values in categories.items()],
            ),
            ScoreTable(
                "beside published totals, on the whole of MME",
                ["", "perception", "cognition"],
                [[this_run, *totals.values()], *([name, *values] for name, values in PUBLISHED.items())],
            ),
        ]
        settings = {"generation": dict(self.generation), "problems": problems.places}
        return Results(self.name, scores, predictions, settings, tables)

    def readable_questions(self, problems: Problems) -> list[MMEQuestion]:
        questions = read_mme(Path(self.data), self.images and Path(self.images), problems)
        bad: dict[Path, str] = {}
        check_images(list(dict.fromkeys(question.image for question in questions)), bad.__setitem__)
        for image, reason in bad.items():
            problems.add(reason, str(image), samples=2)
        questions = [question for question in questions if question.image not in bad]
        if not questions:
            raise UserError(f"{self.data}: none of its images can be read; set paths.images to where their paths start")
        if problems.skipped:
            print(problems.summary())
        return questions

    def report(self, results: Results, run_folder: Path) -> Report:
        """The totals, the categories, and the questions with their pictures, marked right and wrong."""
        scores = results.scores
        cards = [Score(name, scores[name], note=scores["split"]) for name in ("perception", "cognition")]
        cards.append(Score("neither yes nor no", scores["other"], note="counted as wrong"))
        samples = [
            Sample(
                p.image,
                p.prediction,
                [f"right: {p.references[0]}", f"read as: {p.condition}", p.id.split(" ")[0]],
                good=p.condition == p.references[0],
                prompt=p.prompt,
            )
            for p in results.predictions
        ]
        report = Report("MME", f"{scores['split']}, {scores['questions']:,} questions").scores(cards).gallery(samples)
        return add_results(report, results, run_folder)
