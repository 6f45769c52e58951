"""The cards of a report: a score, a picture with what was said about it, a question with its answers; as HTML.

Whatever the caller hands in is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

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
    """A question about a picture (or about none), the answers under each condition, and what was expected.

    ``score`` sorts; the first answer says whether it went well.
    """

    picture: Picture | None
    question: str
    answers: Sequence[Answer]
    expected: str = ""
    score: float | None = None

    @property
    def good(self) -> bool | None:
        return self.answers[0].good


def join(parts: Iterable[str]) -> str:
    return "".join(parts)


def show(value: Any) -> str:
    """A value as people write it: 0.319, 14,312,448."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:,.4g}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mark(good: bool | None) -> str:
    return {True: "good", False: "bad", None: ""}[good]


def score_card(score: Score) -> str:
    target = note = ""
    if score.target is not None:
        reached = float(score.value) / score.target if score.target else 1.0
        target = f'<meter min="0" max="1" value="{min(max(reached, 0.0), 1.0):.3f}"></meter>'
        note = f"target {show(score.target)}" + (" · " if score.note else "")
    note = f"<small>{note}{escape(score.note)}</small>"
    millions = isinstance(score.value, int) and score.value >= 1_000_000
    value = f"{score.value / 1e6:.1f} M" if millions else show(score.value)
    return f'<div class="score"><span>{escape(score.name)}</span><b>{value}</b>{target}{note}</div>'


def controls(count: str, cards: Sequence[Sample | Question]) -> str:
    """Search, and where cards are marked or scored a filter and an order; ``report.js`` answers them."""
    controls = '<input type="search" placeholder="Search" aria-label="Search">'
    if any(card.good is not None for card in cards):
        controls += _choice("show", {"all": "All", "good": "Good", "bad": "Bad"})
    if any(card.score is not None for card in cards):
        controls += _choice("sort", {"given": "As given", "worst": "Worst first", "best": "Best first"})
    return f'<div class="controls">{controls}<output>{count}</output></div>'


def _choice(name: str, options: Mapping[str, str]) -> str:
    buttons = join(
        f'<button data-{name}="{value}" aria-pressed="{str(place == 0).lower()}">{text}</button>'
        for place, (value, text) in enumerate(options.items())
    )
    return f'<div class="choice">{buttons}</div>'


def sample_card(place: int, sample: Sample) -> str:
    prompt = f'<p class="prompt">{escape(sample.prompt)}</p>' if sample.prompt else ""
    references = join(f"<li>{escape(reference)}</li>" for reference in sample.references)
    return _card(
        place,
        sample,
        f"<div>{prompt}<p class='said'>{escape(sample.caption)}</p><ul>{references}</ul></div>",
    )


def question_card(place: int, question: Question) -> str:
    answers = join(
        f'<div class="answer {_mark(answer.good)}">'
        f"<dt>{escape(answer.condition)}</dt><dd>{escape(answer.text)}</dd></div>"
        for answer in question.answers
    )
    expected = f'<p class="expected">Expected: {escape(question.expected)}</p>' if question.expected else ""
    return _card(
        place, question, f'<div><p class="said">{escape(question.question)}</p><dl>{answers}</dl>{expected}</div>'
    )


def _card(place: int, card: Sample | Question, words: str) -> str:
    mark = _mark(card.good)
    score = "" if card.score is None else f'<span class="pill {mark}">{card.score:.2f}</span>'
    return (
        f'<article class="card {mark}" data-place="{place}" data-mark="{mark}" data-score="{card.score or 0.0}">'
        f"{_picture(card.picture)}{score}{words}</article>"
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


def spread(cards: Sequence[Sample | Question], limit: int) -> Sequence[Sample | Question]:
    """At most ``limit`` of them, in their order: the worst third, the best third, and some evenly from between."""
    if len(cards) <= limit:
        return cards
    ranked = sorted(range(len(cards)), key=lambda place: _rank(cards[place]))
    ends, between = limit // 3, limit - 2 * (limit // 3)
    middle = ranked[ends : len(ranked) - ends]
    chosen = {*ranked[:ends], *ranked[len(ranked) - ends :]}
    chosen |= {middle[(2 * step + 1) * len(middle) // (2 * between)] for step in range(between)}
    return [cards[place] for place in sorted(chosen)]


def _rank(card: Sample | Question) -> float:
    return float(card.good or 0) if card.score is None else card.score
