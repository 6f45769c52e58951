"""The page's pictures, drawn with matplotlib (the extra ``report``)."""

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lav2.claims.claim import Claim
from lav2.claims.results import Results, mean_curve

WIDTH, PANEL = 5.2, 3.4  # inches


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def draw(claim: Claim, results: Results, path: Path) -> bool:
    """One panel for each outcome the claim looks at, with every seed as a dot, and the plots it asks for besides.

    Returns:
        Whether there was something to draw.
    """
    from matplotlib.figure import Figure

    arms = [name for name in claim.arms if results.of(name)]
    outcomes = [name for name in results.outcomes(claim) if any(results.values(arm, name) for arm in arms)]
    metrics = claim.curves.get("metrics", ()) if arms else ()
    panels = len(outcomes) + len(metrics) + (len(claim.against) if arms else 0)
    if not panels:
        return False
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH * columns, PANEL * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    free = iter(places)
    for outcome in outcomes:
        dots(next(free), claim, results, arms, outcome)
    for metric in metrics:
        lines(next(free), claim, results, arms, metric, claim.curves["steps"])
    for what, outcome in claim.against.items():
        against(next(free), claim, results, arms, what, outcome)
    for axes in places[panels:]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def dots(axes, claim: Claim, results: Results, arms: Sequence[str], outcome: str) -> None:
    """An outcome of each arm: the seeds as circles, their mean with one standard deviation."""
    shown = [arm for arm in arms if results.values(arm, outcome)]
    for place, arm in enumerate(reversed(shown)):
        spread = results.spread(arm, outcome)
        axes.plot(spread.values, [place] * len(spread.values), "o", color="C0", fillstyle="none", markersize=4)
        axes.errorbar(spread.mean, place, xerr=spread.std or 0.0, color="C0", marker="o", capsize=3)
    axes.set_yticks(range(len(shown)), [wrapped(claim.arms[arm].label) for arm in reversed(shown)], fontsize="x-small")
    axes.set_xlabel(outcome.replace("_", " "))
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
            error, label = spread.std or 0.0, wrapped(claim.arms[arm].label)
            axes.errorbar(at, spread.mean, yerr=error, color=f"C{number}", marker="o", capsize=3, label=label)
    axes.set(xlabel="parameters that learn" if what == "parameters" else what, ylabel=outcome.replace("_", " "))
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)


def wrapped(label: str, width: int = 30) -> str:
    return textwrap.fill(label, width)
