"""ScienceQA as it is published: ``problems.json``, ``pid_splits.json`` and ``images/<split>/<id>/image.png``."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lav2.data.examples import Example
from lav2.data.problems import Problems
from lav2.errors import UserError

PROBLEMS, SPLITS = "problems.json", "pid_splits.json"
FORMATS = ("QCM-A", "QCM-ALE")
SUBJECTS = ("natural science", "social science", "language science")
GRADES = tuple(f"grade{number}" for number in range(1, 13))


@dataclass(frozen=True)
class ScienceQASource:
    """A folder of ScienceQA and the part of it that is meant.

    Args:
        folder: holds ``problems.json``, ``pid_splits.json`` and ``images/``.
        split: ``train``, ``val``, ``test``, or another of ``pid_splits.json`` (``minitest`` …).
        format: ``QCM-A``, the answer alone (LLaMA-Adapter V1), or ``QCM-ALE``, then lecture and solution (LaVIN).
    """

    folder: str | Path
    split: str
    format: str = "QCM-A"


@dataclass(frozen=True, slots=True)
class ScienceQuestion:
    """One problem. ``answer`` is the index of the right choice; ``hint`` may be empty and ``image`` None."""

    id: str
    question: str
    choices: Sequence[str]
    answer: int
    hint: str
    lecture: str
    solution: str
    subject: str
    grade: str
    image: Path | None

    @property
    def letter(self) -> str:
        """The letter of the right choice."""
        return ascii_uppercase[self.answer]

    @property
    def prompt(self) -> str:
        """Question, context, options (QCM): what the model is asked, before any template."""
        lettered = zip(ascii_uppercase, self.choices, strict=False)
        options = " ".join(f"({letter}) {choice}" for letter, choice in lettered)
        return _single_spaced(f"Question: {self.question}\nContext: {self.hint.strip() or 'N/A'}\nOptions: {options}")

    def response(self, format: str) -> str:
        """What the model is to say: the answer, and with ``QCM-ALE`` why.

        Line breaks in lecture and solution are written as ``\\n``, two characters, as the published prompts do.
        """
        answer = f"The answer is {self.letter}."
        why = [part.replace("\n", "\\n") for part in (self.lecture, self.solution)]
        if format == "QCM-A" or not any(part.strip() for part in why):
            return answer
        return _single_spaced(f"{answer} BECAUSE: {why[0]} {why[1]}").strip()


def read_scienceqa(sources: Iterable[ScienceQASource], problems: Problems) -> list[Example]:
    """Every question of the sources as an example, without looking into the images; bad ones go to ``problems``.

    Raises:
        UserError: a file is missing or of another format, or has no such split; a format is unknown.
    """
    examples = []
    for source in sources:
        if source.format not in FORMATS:
            raise UserError(f"ScienceQA's format is {source.format!r}; choose one of {', '.join(FORMATS)}")
        for question in read_questions(source.folder, source.split, problems):
            where = f"{Path(source.folder) / PROBLEMS} question {question.id}"
            response = question.response(source.format)
            examples.append(Example(question.prompt, "", response, question.id, where, question.image))
    return examples


def read_questions(folder: str | Path, split: str, problems: Problems) -> list[ScienceQuestion]:
    """The questions of one split, in its order; bad ones go to ``problems``.

    Raises:
        UserError: a file is missing or of another format, or has no such split.
    """
    folder = Path(folder).absolute()
    entries, splits = _read_object(folder / PROBLEMS), _read_object(folder / SPLITS)
    if not isinstance(splits.get(split), list):
        raise UserError(f"{folder / SPLITS} has no split {split!r}; it has {', '.join(splits)}")
    problems.total += len(splits[split])
    questions = []
    for id in map(str, splits[split]):
        entry = entries.get(id)
        if fault := _fault(entry):
            problems.add(fault, f"{PROBLEMS} question {id}")
            continue
        image = folder / "images" / entry["split"] / id / entry["image"] if entry.get("image") else None
        texts = {name: entry.get(name) or "" for name in ("hint", "lecture", "solution")}
        known = {name: entry[name] for name in ("question", "choices", "answer", "subject", "grade")}
        questions.append(ScienceQuestion(id=id, image=image, **known, **texts))
    return questions


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no {path}: a folder of ScienceQA holds {PROBLEMS}, {SPLITS} and images/")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no readable json: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no json object; give ScienceQA's own files")
    return content


def _fault(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "missing question"
    if not isinstance(entry.get("question"), str) or not entry["question"].strip():
        return "empty question"
    choices, answer = entry.get("choices"), entry.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        return "question without choices"
    if type(answer) is not int or not 0 <= answer < min(len(choices), len(ascii_uppercase)):
        return "answer that is no choice"
    for name in ("hint", "lecture", "solution", "image"):
        if not isinstance(entry.get(name), str | None):
            return f"{name} that is no text"
    if entry.get("subject") not in SUBJECTS:
        return "unknown subject"
    if entry.get("grade") not in GRADES:
        return "unknown grade"
    if entry.get("image") and not isinstance(entry.get("split"), str):
        return "image without a split"
    return None


def _single_spaced(text: str) -> str:
    """Double spaces made single in one pass, as the published prompts do (three become two)."""
    return text.replace("  ", " ")
