"""Line charts as inline SVG; colors and dark mode are the page's affair (classes ``line-0`` ...)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 600, 320
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 14, 48
MAX_POINTS = 400  # more cannot be told apart
SMOOTHED_FROM = 40  # shorter series are shown as they are
COLORS = 6


@dataclass(frozen=True)
class Series:
    """A line of the chart: its name in the legend, its steps in rising order and the values there."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def line_chart(label: str, series: Sequence[Series]) -> str:
    """Several series over the training step, with axes, grid and a legend that gives each last value.

    A long series is drawn twice: faintly as it is, and as its moving mean (centered, so that it does not lag behind).
    """
    lines = [_Line(one) for one in series]
    left, right = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
    seen = [value for line in lines for value in (*line.smooth, *_inner(line.values))]
    x_ticks, y_ticks = ticks(left, right), ticks(min(seen), max(seen))
    x_span, y_span = (left, max(right, left + 1)), (y_ticks[0], y_ticks[-1])

    def x(step: float) -> float:
        return LEFT + (step - x_span[0]) / (x_span[1] - x_span[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_span[0]) / (y_span[1] - y_span[0]) * (HEIGHT - TOP - BOTTOM)

    def path(line: "_Line", values: Sequence[float], style: str) -> str:
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(line.steps, values, strict=True))
        return f'<polyline class="{style}" points="{points}"/>'

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in y_ticks
    ) + "".join(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{_short(tick)}</text>'
        for tick in x_ticks
        if x_span[0] <= tick <= x_span[1]
    )
    drawn = "".join(
        (path(line, line.values, f"raw line-{place % COLORS}") if line.smoothed else "")
        + path(line, line.smooth, f"line-{place % COLORS}")
        for place, line in enumerate(lines)
    )
    legend = "".join(
        f'<li><i class="line-{place % COLORS}"></i>{escape(line.name)} <b>{line.smooth[-1]:.4g}</b></li>'
        for place, line in enumerate(lines)
    )
    side = f'transform="translate(14 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)"'
    return (
        f'<figure><figcaption>{escape(label)}<ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} over training steps">'
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>{grid}<g clip-path="url(#plot)">{drawn}</g>'
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>'
        f'<text class="label" {side} text-anchor="middle">{escape(label)}</text>'
        f"</svg></figure>"
    )


class _Line:
    """A series as it is drawn: at most MAX_POINTS means of neighbours, and their moving mean."""

    def __init__(self, series: Series):
        self.name = series.name
        size = math.ceil(len(series.steps) / MAX_POINTS)
        self.steps = _means(series.steps, size)
        self.values = _means(series.values, size)
        self.smoothed = len(self.values) >= SMOOTHED_FROM
        self.smooth = _moving_mean(self.values, len(self.values) // 40) if self.smoothed else self.values


def _means(values: Sequence[float], size: int) -> list[float]:
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]


def _moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean over as many neighbours on both sides: ``reach``, fewer towards the ends."""
    means = []
    for place in range(len(values)):
        side = min(reach, place, len(values) - 1 - place)
        means.append(sum(values[place - side : place + side + 1]) / (2 * side + 1))
    return means


def _inner(values: Sequence[float]) -> list[float]:
    """All but the rare extremes, which would flatten the chart."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    return ordered[cut : len(ordered) - cut]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that span low and high: steps of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low or abs(high) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for factor in (1, 2, 2.5, 5, 10) if (step := factor * power) >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
