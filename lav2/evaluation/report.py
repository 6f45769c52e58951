"""One HTML file a person enjoys reading: scores, pictures with what the model said, curves, tables.

The file needs no network: pictures are small JPEGs inside it, charts are SVG drawn here, style and the few lines of
script come from ``report.css`` and ``report.js`` beside this module. Whatever the caller hands in is escaped.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lav2.errors import UserError
from lav2.evaluation.chart import Series, line_chart

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Score:
    """One number, large. ``target`` draws how much of it was reached; ``note`` says what to compare with."""

    name: str
    value: float | int | str
    note: str = ""
    target: float | None = None


@dataclass(frozen=True)
class Sample:
    """A picture and what the model said about it; ``score`` sorts and ``good`` marks it where they are given."""

    picture: Picture | None
    caption: str
    references: Sequence[str] = ()
    score: float | None = None
    good: bool | None = None
    prompt: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer under one condition ("with an expert", "without the image")."""

    condition: str
    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Question:
    """A question about a picture (or about none), the answers under each condition, and what was expected."""

    picture: Picture | None
    question: str
    answers: Sequence[Answer]
    expected: str = ""


class Report:
    """A page built section by section, in the order of the calls; each call returns the report.

    Args:
        title, subtitle: the heading: what was evaluated, and on what.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []

    def scores(self, scores: Iterable[Score], title: str = "Scores") -> "Report":
        """The numbers that matter, as cards."""
        return self._add(title, f'<div class="scores">{_join(map(_score_card, scores))}</div>')

    def gallery(self, samples: Sequence[Sample], title: str = "Samples", limit: int = 120) -> "Report":
        """Pictures with captions, to be searched, sorted by score and filtered by good and bad.

        Of more than ``limit`` samples, ``limit`` are shown: evenly spread from the best score to the worst.
        """
        shown = _spread(samples, limit)
        count = f"{len(samples)} samples" if len(shown) == len(samples) else f"{len(shown)} of {len(samples)} samples"
        cards = _join(_sample_card(place, sample) for place, sample in enumerate(shown))
        return self._add(title, _controls(count, shown) + f'<div class="cards">{cards}</div>')

    def questions(self, questions: Sequence[Question], title: str = "Questions and answers") -> "Report":
        """Pictures with a question and its answers under several conditions."""
        return self._add(title, f'<div class="cards wide">{_join(map(_question_card, questions))}</div>')

    def curves(self, metrics: str | Path, charts: Mapping[str, Mapping[str, str]], title: str = "Training") -> "Report":
        """Line charts over training steps from a ``metrics.csv`` with a ``step`` column.

        Args:
            charts: what a chart shows on its y axis → (the legend's name of a series → the file's column). Columns
                that the file lacks or never fills are left out, as are charts without any series.

        Raises:
            UserError: there is no such file, or it has no column ``step``.
        """
        rows = _read_metrics(Path(metrics))
        drawn = []
        for label, columns in charts.items():
            series = [Series(name, *_points(rows, column)) for name, column in columns.items()]
            series = [one for one in series if one.steps]
            if series:
                drawn.append(line_chart(label, series))
        return self._add(title, f'<div class="charts">{_join(drawn)}</div>') if drawn else self

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], title: str) -> "Report":
        """A table; columns that hold numbers are aligned at their right."""
        rows = list(rows)
        numeric = [all(isinstance(row[column], (int, float)) for row in rows) for column in range(len(header))]

        def line(tag: str, cells: Sequence[Any]) -> str:
            starts = (f'<{tag} class="number">' if number else f"<{tag}>" for number in numeric)
            return (
                f"<tr>{_join(f'{start}{_show(cell)}</{tag}>' for start, cell in zip(starts, cells, strict=True))}</tr>"
            )

        body = _join(line("td", row) for row in rows)
        return self._add(title, f'<div class="scroll"><table>{line("th", header)}{body}</table></div>')

    def details(self, settings: Mapping[str, Any], title: str = "Settings") -> "Report":
        """Settings as a folded list; nested mappings become dotted names."""
        items = _join(f"<dt>{escape(name)}</dt><dd>{_show(value)}</dd>" for name, value in _flatten(settings))
        return self._add(title, f"<details><summary>show</summary><dl>{items}</dl></details>")

    def write(self, path: str | Path) -> Path:
        """Write the page, making its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path

    def html(self) -> str:
        """The page."""
        assets = files("lav2.evaluation")
        names = [(f"section-{place}", escape(title)) for place, (title, _) in enumerate(self._sections)]
        links = _join(f'<a href="#{anchor}">{title}</a>' for anchor, title in names)
        sections = _join(
            f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'
            for (anchor, title), (_, body) in zip(names, self._sections, strict=True)
        )
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(self.title)}</title>
<style>{assets.joinpath("report.css").read_text()}</style>
</head>
<body>
<header><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p><nav>{links}</nav></header>
<main>{sections}</main>
<script>{assets.joinpath("report.js").read_text()}</script>
</body>
</html>
"""

    def _add(self, title: str, body: str) -> "Report":
        self._sections.append((title, body))
        return self


# What the report of a run shows of its metrics.csv: the y axis → the legend's name → the column
CURVES = {
    "training loss": {"captions": "train/caption_loss", "instructions": "train/instruction_loss"},
    "validation loss": {"captions": "val/caption_loss", "instructions": "val/instruction_loss"},
    "how far the gates have opened": {
        "visual prompts": "train/visual_gate",
        "adaptation prompts": "train/adaptation_gate",
    },
    "learning rate": {"captions": "train/caption_learning_rate", "instructions": "train/instruction_learning_rate"},
}


def add_run(report: Report, run_folder: Path) -> Report:
    """Add what a run folder tells of the training: curves, and the table of who owns which parameters."""
    if (run_folder / "metrics.csv").is_file():
        report.curves(run_folder / "metrics.csv", CURVES)
    if (run_folder / "parameters.json").is_file():
        parts = json.loads((run_folder / "parameters.json").read_text())["parts"]
        rows = [[row["owner"], row["part"], row["count"], row["bytes"]] for row in parts]
        report.table(["owner", "part", "parameters", "bytes"], rows, title="Who owns which parameters")
    return report


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)


def _show(value: Any) -> str:
    """A value as people write it: 0.319, 14,312,448."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:,.4g}"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mark(good: bool | None) -> str:
    return {True: "good", False: "bad", None: ""}[good]


def _score_card(score: Score) -> str:
    target = note = ""
    if score.target is not None:
        reached = float(score.value) / score.target if score.target else 1.0
        target = f'<meter min="0" max="1" value="{min(max(reached, 0.0), 1.0):.3f}"></meter>'
        note = f"target {_show(score.target)}" + (" · " if score.note else "")
    note = f"<small>{note}{escape(score.note)}</small>"
    millions = isinstance(score.value, int) and score.value >= 1_000_000
    value = f"{score.value / 1e6:.1f} M" if millions else _show(score.value)
    return f'<div class="score"><span>{escape(score.name)}</span><b>{value}</b>{target}{note}</div>'


def _controls(count: str, samples: Sequence[Sample]) -> str:
    controls = '<input type="search" placeholder="Search captions" aria-label="Search captions">'
    if any(sample.good is not None for sample in samples):
        controls += _choice("show", {"all": "All", "good": "Good", "bad": "Bad"})
    if any(sample.score is not None for sample in samples):
        controls += _choice("sort", {"given": "As given", "worst": "Worst first", "best": "Best first"})
    return f'<div class="controls">{controls}<output>{count}</output></div>'


def _choice(name: str, options: Mapping[str, str]) -> str:
    buttons = _join(
        f'<button data-{name}="{value}" aria-pressed="{str(place == 0).lower()}">{text}</button>'
        for place, (value, text) in enumerate(options.items())
    )
    return f'<div class="choice">{buttons}</div>'


def _sample_card(place: int, sample: Sample) -> str:
    mark = _mark(sample.good)
    score = "" if sample.score is None else f'<span class="pill {mark}">{sample.score:.2f}</span>'
    prompt = f'<p class="prompt">{escape(sample.prompt)}</p>' if sample.prompt else ""
    references = _join(f"<li>{escape(reference)}</li>" for reference in sample.references)
    return (
        f'<article class="card {mark}" data-place="{place}" data-mark="{mark}" data-score="{sample.score or 0.0}">'
        f"{_picture(sample.picture)}{score}<div>{prompt}<p class='said'>{escape(sample.caption)}</p>"
        f"<ul>{references}</ul></div></article>"
    )


def _question_card(question: Question) -> str:
    answers = _join(
        f'<div class="answer {_mark(answer.good)}">'
        f"<dt>{escape(answer.condition)}</dt><dd>{escape(answer.text)}</dd></div>"
        for answer in question.answers
    )
    expected = f'<p class="expected">Expected: {escape(question.expected)}</p>' if question.expected else ""
    return (
        f'<article class="card">{_picture(question.picture)}<div><p class="said">{escape(question.question)}</p>'
        f"<dl>{answers}</dl>{expected}</div></article>"
    )


def _picture(picture: Picture | None, size: int = 360) -> str:
    """A thumbnail as an ``<img>``; a picture that cannot be read says so, for a report must not fail after hours."""
    if picture is None:
        return ""
    try:
        with picture.copy() if isinstance(picture, Image.Image) else Image.open(picture) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((size, size))
    except OSError:
        return f'<p class="missing">{escape(str(picture))} cannot be read</p>'
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img loading="lazy" alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{data}">'
    )


def _spread(samples: Sequence[Sample], limit: int) -> Sequence[Sample]:
    if len(samples) <= limit:
        return samples
    ranked = sorted(range(len(samples)), key=lambda place: samples[place].score or 0.0)
    return [
        samples[place] for place in sorted({ranked[round(i * (len(ranked) - 1) / (limit - 1))] for i in range(limit)})
    ]


def _read_metrics(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such metrics file; curves need the metrics.csv of a run folder")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise UserError(f"{path} has no column `step`; curves need the metrics.csv of a run folder")
        return list(reader)


def _points(rows: list[dict[str, str]], column: str) -> tuple[list[float], list[float]]:
    points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column) and row["step"]]
    points = [point for point in points if math.isfinite(point[1])]
    return [step for step, _ in points], [value for _, value in points]
