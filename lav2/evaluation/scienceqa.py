"""ScienceQA accuracy in the nine columns of the papers (LLaMA-Adapter V1, Table 2; LaVIN)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lav2.data.images import check_images
from lav2.data.problems import Problems
from lav2.data.scienceqa import GRADES, SUBJECTS, ScienceQuestion, read_questions
from lav2.errors import UserError
from lav2.evaluation.predict import Predictor, check
from lav2.evaluation.report import Report, Sample, Score, add_results
from lav2.evaluation.results import Prediction, Results, ScoreTable

# Which questions a column counts: by subject, by context (TXT: with a hint, IMG: with an image, NO: with neither), by
# grade.
COLUMNS = {
    "NAT": lambda question: question.subject == SUBJECTS[0],
    "SOC": lambda question: question.subject == SUBJECTS[1],
    "LAN": lambda question: question.subject == SUBJECTS[2],
    "TXT": lambda question: bool(question.hint),
    "IMG": lambda question: question.image is not None,
    "NO": lambda question: not question.hint and question.image is None,
    "G1-6": lambda question: question.grade in GRADES[:6],
    "G7-12": lambda question: question.grade in GRADES[6:],
    "Avg": lambda question: True,
}
# Accuracy on the test split, 4,241 questions, in the order of COLUMNS
PUBLISHED = {
    # LLaMA-Adapter, arXiv 2303.16199, Table 2: without images (1.2M parameters) and with them (1.8M)
    "LLaMA-Adapter_T": (79.00, 73.79, 80.55, 78.30, 70.35, 83.14, 79.77, 75.68, 78.31),
    "LLaMA-Adapter": (84.37, 88.30, 84.36, 83.72, 80.32, 86.90, 85.83, 84.05, 85.19),
    # LaVIN, arXiv 2305.15023, as on ScienceQA's leaderboard, where 7B starts from Vicuna; from LLaMA, as here, there is
    # an average alone. 13B with twice the epochs (90.54 without)
    "LaVIN-7B LLaMA": (*[None] * 8, 89.37),
    "LaVIN-7B Vicuna": (89.25, 94.94, 85.24, 88.51, 87.46, 88.08, 90.16, 88.07, 89.41),
    "LaVIN-13B": (89.88, 94.49, 89.82, 88.95, 87.61, 91.85, 91.45, 89.72, 90.83),
}
STATED = re.compile(r"[Tt]he answer is \(?([A-Z])\b")
ALONE = re.compile(r"\(?([A-Z])\)?(?:$|[.:,)\n])")


def read_letter(answer: str, choices: int) -> str | None:
    """The letter that an answer chooses: the first "The answer is X", or else an answer that is or begins with "X" or
    "(X)" and no more words; None if there is none or it is the letter of no choice."""
    found = STATED.search(answer) or ALONE.match(answer.strip())
    return found[1] if found and found[1] in ascii_uppercase[:choices] else None


def accuracies(questions: Sequence[ScienceQuestion], letters: Sequence[str | None]) -> dict[str, float | None]:
    """Accuracy in percent for each of COLUMNS; None for a column without questions."""
    columns: dict[str, float | None] = {}
    for name, counts in COLUMNS.items():
        right = [
            letter == question.letter for question, letter in zip(questions, letters, strict=True) if counts(question)
        ]
        columns[name] = 100 * sum(right) / len(right) if right else None
    return columns


@dataclass
class ScienceQA:
    """Accuracy on a split of ScienceQA. The prompt is that of ``QCM-A`` and of ``QCM-ALE``, which are the same.

    An answer that cannot be read is wrong and counted in ``unreadable``. (LaVIN's code draws a choice for it instead.)

    Args:
        folder, split: see :class:`lav2.data.scienceqa.ScienceQASource`.
        images: whether the model is shown the images; ``False`` for one of language alone, which is asked all the same.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        on_error, max_bad: what to do with bad problems and broken images; see :class:`lav2.data.Problems`.
    """

    folder: str | Path
    split: str = "test"
    images: bool = True
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "skip"
    max_bad: float = 0.05

    name = "scienceqa"

    def __post_init__(self):
        check(self.generation, scienceqa=self.folder)
        if type(self.images) is not bool:
            raise UserError(f"eval.images is {self.images!r}; it must be true or false")

    def run(self, predictor: Predictor) -> Results:
        problems = Problems("questions", self.on_error, self.max_bad)
        questions = self.readable_questions(problems)
        images = [question.image if self.images else None for question in questions]
        answers = predictor.generate(
            [question.prompt for question in questions],
            images,
            **self.generation,
        )
        letters = [
            read_letter(answer, len(question.choices)) for question, answer in zip(questions, answers, strict=True)
        ]
        columns = accuracies(questions, letters)
        scores: dict[str, Any] = dict(columns)
        scores |= {"split": self.split, "questions": len(questions)}
        scores |= {"unreadable": letters.count(None), "skipped": problems.skipped}
        predictions = [
            Prediction(
                question.id,
                question.prompt,
                answer,
                [question.response("QCM-A")],
                image=image and str(image),
                condition=letter or "unreadable",
            )
            for question, image, answer, letter in zip(questions, images, answers, letters, strict=True)
        ]
        rows = [["this run", *columns.values()], *([name, *values] for name, values in PUBLISHED.items())]
        title = f"accuracy in percent: this run on {self.split}, published rows on test"
        table = ScoreTable(title, ["", *COLUMNS], rows)
        settings = {"generation": dict(self.generation), "problems": problems.places}
        return Results(self.name, scores, predictions, settings, tables=[table])

    def readable_questions(self, problems: Problems) -> list[ScienceQuestion]:
        questions = read_questions(self.folder, self.split, problems)
        bad: dict[Path, str] = {}
        check_images([question.image for question in questions if question.image and self.images], bad.__setitem__)
        for question in questions:
            if question.image in bad:
                problems.add(bad[question.image], str(question.image))
        questions = [question for question in questions if question.image not in bad]
        if not questions:
            raise UserError(f"{self.folder}: no question of the split {self.split} can be read")
        if problems.skipped:
            print(problems.summary())
        return questions

    def report(self, results: Results, run_folder: Path) -> Report:
        """The columns, the published ones, and the questions with their pictures, marked right and wrong."""
        scores = results.scores
        cards = [Score(name, scores[name], note=self.split) for name in COLUMNS if scores[name] is not None]
        cards.append(Score("unreadable answers", scores["unreadable"], note="counted as wrong"))
        samples = [
            Sample(
                p.image,
                p.prediction,
                [p.references[0], f"read as {p.condition}"],
                good=p.references == [f"The answer is {p.condition}."],
                prompt=p.prompt,
            )
            for p in results.predictions
        ]
        report = Report("ScienceQA", f"{self.split}, {scores['questions']:,} questions").scores(cards).gallery(samples)
        return add_results(report, results, run_folder)
