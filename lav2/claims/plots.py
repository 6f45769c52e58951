"""The page's pictures, drawn with matplotlib (the extra ``report``)."""

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lav2.claims.claim import Claim
from lav2.claims.results import Results, mean_curve

WIDTH, PANEL, ROW = 5.2, 3.4, 0.42  # inches; a panel is higher if its rows need it


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def draw(claim: Claim, results: Results, path: Path) -> bool:
    """A panel for each outcome the claim looks at, with every seed as a dot, and the plots it asks for besides.

    Returns:
        Whether there was something to draw.
    """
    from matplotlib.figure import Figure

    arms = [name for name in claim.arms if results.of(name)]
    outcomes = [name for name in results.outcomes(claim) if any(results.values(arm, name) for arm in arms)]
    shared = side_by_side(claim, outcomes)
    metrics = claim.curves.get("metrics", ()) if arms else ()
    panels = len(shared) + len(metrics) + (len(claim.against) if arms else 0)
    if not panels:
        return False
    columns = min(2, panels)
    rows = -(-panels // columns)
    height = max(PANEL, ROW * len(arms) * max(map(len, shared), default=0))
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    free = iter(places)
    for outcomes in shared:
        dots(next(free), claim, results, arms, outcomes)
    for metric in metrics:
        lines(next(free), claim, results, arms, metric, claim.curves["steps"])
    for what, outcome in claim.against.items():
        against(next(free), claim, results, arms, what, outcome)
    for axes in places[panels:]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def side_by_side(claim: Claim, outcomes: Sequence[str]) -> list[list[str]]:
    """The outcomes of each panel: those that a comparison sets beside one another share one."""
    pairs = [{one.better[1], one.worse[1]} for one in claim.comparisons]
    panels: list[list[str]] = []
    for outcome in outcomes:
        compared = set().union(*(pair for pair in pairs if outcome in pair))
        panel = next((panel for panel in panels if compared & set(panel)), None)
        if panel is None:
            panels.append([outcome])
        else:
            panel.append(outcome)
    return panels


def dots(axes, claim: Claim, results: Results, arms: Sequence[str], outcomes: Sequence[str]) -> None:
    """Outcomes of each arm, one below the other: the seeds as circles, their mean with one standard deviation."""
    labels, spreads = [], []
    runs = [results.plan.same[arm] for arm in arms]
    for place, arm in enumerate(arms):
        label = claim.arms[arm].label + (" (the same runs)" if runs[place] in runs[:place] else "")
        for outcome in outcomes:
            if spread := results.spread(arm, outcome):
                named = [label, *([outcome.replace("_", " ")] if len(outcomes) > 1 else [])]
                labels.append(wrapped(": ".join(named)))
                spreads.append(spread)
    for place, spread in enumerate(reversed(spreads)):
        axes.plot(spread.values, [place] * len(spread.values), "o", color="C0", fillstyle="none", markersize=7)
        axes.errorbar(spread.mean, place, xerr=spread.std, color="C0", marker="|", markersize=9, capsize=3)
    axes.set_yticks(range(len(labels)), labels[::-1], fontsize="x-small")
    axes.set_ylim(-0.5, len(labels) - 0.5)
    meanings = results.setting.values["meanings"]
    said = (f"{outcome.replace('_', ' ')}: {meanings[outcome]}" for outcome in outcomes)
    axes.set_xlabel("\n".join(textwrap.fill(line, 60) for line in said), fontsize="x-small")
    axes.grid(axis="x", alpha=0.3)


def lines(axes, claim: Claim, results: Results, arms: Sequence[str], metric: str, steps: int) -> None:
    """A metric of training over the first ``steps``: the mean over seeds, between the lowest and the highest."""
    for number, arm in enumerate(arms):
        at, means, low, high = mean_curve(list(results.of(arm).values()), metric, steps)
        axes.plot(at, means, color=f"C{number}", label=claim.arms[arm].label)
        axes.fill_between(at, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=metric)
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)


def against(axes, claim: Claim, results: Results, arms: Sequence[str], what: str, outcome: str) -> None:
    """An outcome over the number of parameters that learn, or over the steps of training."""
    for number, arm in enumerate(arms):
        if spread := results.spread(arm, outcome):
            at = results.trained_parameters(arm) if what == "parameters" else results.steps(arm)
            look = {"color": f"C{number}", "marker": "o", "capsize": 3, "label": wrapped(claim.arms[arm].label)}
            above = 2 + 1 / (1 + (spread.std or 0))  # a wide bar hides no narrow one
            axes.errorbar(at, spread.mean, yerr=spread.std, zorder=above, **look)
    axes.set(xlabel="parameters that learn" if what == "parameters" else what, ylabel=outcome.replace("_", " "))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)


def wrapped(label: str, width: int = 30) -> str:
    return textwrap.fill(label, width)
