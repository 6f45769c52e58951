"""The 80 questions of the V2 paper's chat comparison (Fig. 5), judged in pairs and in both orders."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lav2.errors import UserError
from lav2.evaluation.judge import Judge, Judgement, Pair
from lav2.evaluation.predict import Journal, Predictor, check
from lav2.evaluation.report import Answer, Question, Report, Score, add_results
from lav2.evaluation.results import Prediction, Results, ScoreTable

OUTCOMES = ("win", "tie", "loss", "unreadable")


@dataclass
class Vicuna80:
    """Answers to open questions and, with a judge, how they compare with reference answers.

    Answers are left in ``answers.jsonl`` too, in the form that reference answers have, so that runs can be compared
    with each other. A pair is won or lost if the judge says so in both orders; what it says in one order only is a tie.

    Args:
        questions: a file of JSON lines ``{"question_id", "category", "turns": [question]}`` (or ``"text": question``).
        reference: answers to compare with, lines of ``{"question_id", "text"}``; needed with a judge.
        judge: the settings of :class:`lav2.evaluation.judge.Judge`; without an ``endpoint`` only the answers are
            written.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
    """

    questions: str | Path
    reference: str | Path | None = None
    judge: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    name = "vicuna80"

    def __post_init__(self):
        judged = self.judge.get("endpoint") is not None
        check(self.generation, questions=self.questions, **({"reference": self.reference} if judged else {}))
        self.entries = read_questions(Path(self.questions))
        self.asked: Judge | None = None
        self.others: dict[str, str] = {}
        if judged:
            try:
                self.asked = Judge(**self.judge)
            except TypeError as error:
                raise UserError(f"eval.judge: {str(error).removeprefix('Judge.__init__() ')}") from None
            self.others = read_answers(Path(self.reference))
            if missing := [id for id in self.entries if id not in self.others]:
                raise UserError(f"{self.reference} has no answer to the questions {', '.join(missing)}")

    def run(self, predictor: Predictor) -> Results:
        texts = [question for _, question in self.entries.values()]
        answers = dict(zip(self.entries, predictor.generate(texts, **self.generation), strict=True))
        scores: dict[str, Any] = {"split": Path(self.questions).stem, "questions": len(answers)}
        scores["empty"] = sum(not answer for answer in answers.values())
        judgements, tables = {}, []
        if self.asked:
            pairs = [Pair(id, text, answers[id], self.others[id]) for id, (_, text) in self.entries.items()]
            judgements = self.asked.judge(pairs, Journal(predictor.folder / "judgements.jsonl"))
            scores |= comparison(list(judgements.values()))
            tables.append(self.table(judgements))
            print(position_bias(scores))
        predictions = [
            Prediction(
                id,
                question,
                answers[id],
                [self.others[id]] if self.asked else [],
                condition=judgements[id].outcome if self.asked else "",
            )
            for id, (_, question) in self.entries.items()
        ]
        settings = {"generation": dict(self.generation), "judge": dict(self.judge) if self.asked else None}
        lines = [{"question_id": id, "text": answer} for id, answer in answers.items()]
        files = {"answers.jsonl": lines}
        if self.asked:
            files["verdicts.jsonl"] = [
                {"question_id": id, "ours_first": one.ours_first, "other_first": one.other_first}
                for id, one in judgements.items()
            ]
        return Results(self.name, scores, predictions, settings, tables, files)

    def table(self, judgements: Mapping[str, Judgement]) -> ScoreTable:
        """Outcomes by category, and all together."""
        counts: dict[str, Counter] = {}
        for id, judgement in judgements.items():
            counts.setdefault(self.entries[id][0], Counter())[judgement.outcome] += 1
        counts["all"] = sum(counts.values(), Counter())
        rows = [[name, *(count[outcome] for outcome in OUTCOMES)] for name, count in counts.items()]
        return ScoreTable(f"against {Path(self.reference).stem}", ["category", *OUTCOMES], rows)

    def report(self, results: Results, run_folder: Path) -> Report:
        """The outcomes, and each question with both answers, marked won and lost."""
        scores = results.scores
        if self.asked:
            cards = [Score(outcome, scores[outcome], note=f"of {scores['questions']}") for outcome in OUTCOMES]
            cards.append(Score("first answer preferred", scores["first_preferred"], note=position_bias(scores)))
        else:
            cards = [Score("answers", scores["questions"], note="no judge was asked")]
        questions = [
            Question(
                None,
                p.prompt,
                [
                    Answer("this run", p.prediction, {"win": True, "loss": False}.get(p.condition)),
                    *(Answer(f"the other ({p.condition} for this run)", text) for text in p.references),
                ],
                score={"win": 1.0, "tie": 0.5, "loss": 0.0}.get(p.condition),
            )
            for p in results.predictions
        ]
        report = Report("The 80 questions", f"{scores['split']}, {scores['questions']} questions")
        return add_results(report.scores(cards).questions(questions), results, run_folder)


def comparison(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts of the outcomes, and what they owe to the order.

    ``win_rate`` counts a tie as half and leaves out what cannot be read. ``first_preferred`` is the fraction of the
    single verdicts for one side that fell to the answer shown first (0.5 of an unbiased judge, None without any), among
    ``decided``; ``agreement`` the fraction of pairs that were judged alike in both orders.
    """
    outcomes = Counter(judgement.outcome for judgement in judgements)
    read = [judgement for judgement in judgements if judgement.outcome != "unreadable"]
    first = sum((one.ours_first == "ours") + (one.other_first == "other") for one in read)
    decided = sum(side in ("ours", "other") for one in read for side in (one.ours_first, one.other_first))
    return {outcome: outcomes[outcome] for outcome in OUTCOMES} | {
        "win_rate": (outcomes["win"] + outcomes["tie"] / 2) / len(read) if read else None,
        "first_preferred": first / decided if decided else None,
        "decided": decided,
        "agreement": sum(one.ours_first == one.other_first for one in read) / len(read) if read else None,
    }


def position_bias(scores: Mapping[str, Any]) -> str:
    """What the order of the answers did to the verdicts, in a line; biased means two standard deviations from half."""
    decided, preferred = scores["decided"], scores["first_preferred"]
    if not decided:
        return "the judge preferred no answer"
    biased = abs(preferred - 0.5) > 1 / math.sqrt(decided)
    side = "first" if preferred > 0.5 else "second"
    return f"biased towards the answer shown {side}" if biased else "no bias of position to be seen"


def read_questions(path: Path) -> dict[str, tuple[str, str]]:
    """Id → (category, question).

    Raises:
        UserError: a line is of another form, or an id comes twice.
    """
    return {id: (str(entry.get("category", "all")), _text(entry, path, id)) for id, entry in _read_lines(path).items()}


def read_answers(path: Path) -> dict[str, str]:
    """Question id → answer, from lines of ``{"question_id", "text"}`` or ``{"question_id", "choices": [{"turns"}]}``.

    Raises:
        UserError: as :func:`read_questions`.
    """
    return {id: _text(entry, path, id) for id, entry in _read_lines(path).items()}


def _read_lines(path: Path) -> dict[str, dict]:
    entries: dict[str, dict] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            id = str(entry["question_id"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path} line {number} is no JSON object with a "question_id"') from None
        if id in entries:
            raise UserError(f"{path} line {number}: question {id} comes twice")
        entries[id] = entry
    if not entries:
        raise UserError(f"{path} is empty")
    return entries


def _text(entry: dict, path: Path, id: str) -> str:
    try:
        turns = entry["choices"][0]["turns"] if "choices" in entry else entry.get("turns")
        text = entry["text"] if turns is None else turns[0]
    except (LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f'{path}, question {id}: neither "text" nor "turns" holds its words')
    return text.strip()
