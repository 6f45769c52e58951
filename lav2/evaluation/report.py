"""One HTML file a person enjoys reading: scores, pictures with what the model said, curves, tables.

The file needs no network: pictures are small JPEGs inside it, charts are SVG drawn here, style and the few lines of
script come from ``report.css`` and ``report.js`` beside this module. Whatever the caller hands in is escaped.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lav2.errors import UserError
from lav2.evaluation.cards import (
    Answer,
    Question,
    Sample,
    Score,
    controls,
    flatten,
    join,
    question_card,
    sample_card,
    score_card,
    show,
    spread,
)
from lav2.evaluation.chart import Series, line_chart
from lav2.evaluation.results import Results

__all__ = ["Answer", "Question", "Report", "Sample", "Score", "add_results"]


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
        return self._add(title, f'<div class="scores">{join(map(score_card, scores))}</div>')

    def gallery(self, samples: Sequence[Sample], title: str = "Samples", limit: int = 120) -> "Report":
        """Pictures with captions, to be searched, sorted by score and filtered by good and bad.

        Of more than ``limit`` samples, ``limit`` are shown: the best, the worst, and some evenly from between.
        """
        return self._cards(title, samples, sample_card, "samples", "cards", limit)

    def questions(
        self, questions: Sequence[Question], title: str = "Questions and answers", limit: int = 240
    ) -> "Report":
        """Pictures with a question and its answers under several conditions; searched, sorted and filtered likewise."""
        return self._cards(title, questions, question_card, "questions", "cards wide", limit)

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
        return self.charts(drawn, title) if drawn else self

    def charts(self, drawn: Iterable[str], title: str) -> "Report":
        """Charts that are drawn already, as figures with inline SVG."""
        return self._add(title, f'<div class="charts">{join(drawn)}</div>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], title: str) -> "Report":
        """A table; columns that hold numbers are aligned at their right; ``None`` is a cell without a number."""
        rows = list(rows)
        numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in range(len(header))]

        def line(tag: str, cells: Sequence[Any]) -> str:
            starts = (f'<{tag} class="number">' if number else f"<{tag}>" for number in numeric)
            return f"<tr>{join(f'{start}{show(cell)}</{tag}>' for start, cell in zip(starts, cells, strict=True))}</tr>"

        body = join(line("td", row) for row in rows)
        return self._add(title, f'<div class="scroll"><table>{line("th", header)}{body}</table></div>')

    def details(self, settings: Mapping[str, Any], title: str = "Settings") -> "Report":
        """Settings as a folded list; nested mappings become dotted names."""
        items = join(f"<dt>{escape(name)}</dt><dd>{show(value)}</dd>" for name, value in flatten(settings))
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
        links = join(f'<a href="#{anchor}">{title}</a>' for anchor, title in names)
        sections = join(
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

    def _cards(
        self, title: str, cards: Sequence[Any], draw: Callable[[int, Any], str], noun: str, style: str, limit: int
    ) -> "Report":
        shown = spread(cards, limit)
        count = f"{len(cards)} {noun}" if len(shown) == len(cards) else f"{len(shown)} of {len(cards)} {noun}"
        drawn = join(draw(place, card) for place, card in enumerate(shown))
        return self._add(title, controls(count, shown) + f'<div class="{style}">{drawn}</div>')

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


def add_results(report: Report, results: Results, run_folder: Path) -> Report:
    """Add an evaluation's tables and settings, and between them what its run folder tells of the training: curves, and
    the table of who owns which parameters."""
    for table in results.tables:
        report.table(table.header, table.rows, title=table.title)
    if (run_folder / "metrics.csv").is_file():
        report.curves(run_folder / "metrics.csv", CURVES)
    if (run_folder / "parameters.json").is_file():
        parts = json.loads((run_folder / "parameters.json").read_text())["parts"]
        rows = [[row["owner"], row["part"], row["count"], row["bytes"]] for row in parts]
        report.table(["owner", "part", "parameters", "bytes"], rows, title="Who owns which parameters")
    return report.details(results.settings)


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
