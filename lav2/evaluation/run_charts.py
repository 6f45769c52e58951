"""Charts of many runs: an outcome over the values of a setting, seeds as dots around their mean.

Drawn as SVG for the page, and with matplotlib (the extra ``report``) as a PNG for a paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lav2.errors import UserError
from lav2.evaluation.chart import BOTTOM, COLORS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks
from lav2.evaluation.runs import Group, Spread, order, show


@dataclass(frozen=True)
class Chart:
    """``outcome`` over the values of ``setting``, evenly spaced in their order.

    ``lines`` holds, for each combination of the other varied settings, the spread at some of the values, by place.
    """

    outcome: str
    setting: str
    values: Sequence[str]
    lines: dict[str, dict[int, Spread]]


def charts(groups: Sequence[Group], outcomes: Sequence[str]) -> list[Chart]:
    """A chart for each of ``outcomes`` that differs from group to group, over the setting with the most values."""
    if len(groups) < 2 or not groups[0].settings:
        return []
    values = {name: sorted({group.settings[name] for group in groups}, key=order) for name in groups[0].settings}
    setting = max(values, key=lambda name: len(values[name]))
    made = []
    for outcome in outcomes:
        lines: dict[str, dict[int, Spread]] = {}
        for group in groups:
            if outcome in group.outcomes and all(map(math.isfinite, group.outcomes[outcome].values)):
                others = (f"{last(name)} {show(group.settings[name])}" for name in values if name != setting)
                place = values[setting].index(group.settings[setting])
                lines.setdefault(", ".join(others), {})[place] = group.outcomes[outcome]
        if len({spread.mean for line in lines.values() for spread in line.values()}) > 1:
            made.append(Chart(outcome, setting, [show(value) for value in values[setting]], lines))
    return made


def last(name: str) -> str:
    return name.rpartition(".")[2]


def svg(chart: Chart) -> str:
    """``chart`` as inline SVG; the page's style colors it."""
    reach = [y for line in chart.lines.values() for spread in line.values() for y in extent(spread)]
    y_ticks = ticks(min(reach), max(reach))
    low, high = y_ticks[0], y_ticks[-1]

    def x(place: float) -> float:
        return LEFT + (place + 0.5) / len(chart.values) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in y_ticks
    ) + "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{escape(value)}</text>'
        for place, value in enumerate(chart.values)
    )
    legend = ""
    for number, (name, line) in enumerate(chart.lines.items()):
        color, shift = f"line-{number % COLORS}", 0.06 * (number - (len(chart.lines) - 1) / 2)
        points = [(x(place + shift), spread) for place, spread in sorted(line.items())]
        drawn += f'<polyline class="{color}" points="{" ".join(f"{at:.1f},{y(one.mean):.1f}" for at, one in points)}"/>'
        for at, spread in points:
            bottom, top = extent(spread)
            drawn += f'<polyline class="{color}" points="{at:.1f},{y(bottom):.1f} {at:.1f},{y(top):.1f}"/>'
            drawn += f'<circle class="{color}" cx="{at:.1f}" cy="{y(spread.mean):.1f}" r="4" fill="currentColor"/>'
            drawn += "".join(
                f'<circle class="{color}" cx="{at:.1f}" cy="{y(value):.1f}" r="3" fill="none" stroke="currentColor"/>'
                for value in spread.values
            )
        legend += f'<li><i class="{color}"></i>{escape(name)}</li>' if name else ""
    return (
        f'<figure><figcaption>{escape(chart.outcome)}<ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{chart.outcome} by {chart.setting}")}">'
        f"{drawn}"
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.setting)}</text>'
        f"</svg></figure>"
    )


def extent(spread: Spread) -> tuple[float, float]:
    """Where a spread begins and ends: its values, and one standard deviation around the mean."""
    std = spread.std or 0.0
    return min(*spread.values, spread.mean - std), max(*spread.values, spread.mean + std)


def save_png(drawn: Sequence[Chart], path: Path) -> None:
    """All charts in one picture, two in a row.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('a picture of the plots needs matplotlib: pip install -e ".[report]"') from None
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for chart, axes in zip(drawn, places, strict=False):
        for number, (name, line) in enumerate(chart.lines.items()):
            color, at = f"C{number}", sorted(line)
            means, stds = ([getattr(line[place], what) or 0.0 for place in at] for what in ("mean", "std"))
            axes.errorbar(at, means, stds, color=color, marker="o", capsize=3, label=name or None)
            dots = [(place, value) for place in at for value in line[place].values]
            axes.plot(*zip(*dots, strict=True), "o", color=color, fillstyle="none", markersize=4)
        axes.set_xticks(range(len(chart.values)), chart.values)
        axes.set(xlabel=chart.setting, ylabel=chart.outcome)
        axes.grid(axis="y", alpha=0.3)
        if any(chart.lines):
            axes.legend(fontsize="small")
    for axes in list(figure.axes)[len(drawn) :]:
        axes.remove()
    figure.savefig(path, dpi=150)
