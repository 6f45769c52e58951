"""When a claim counts as reproduced."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

REPRODUCED, NOT_REPRODUCED, NOT_DECIDABLE = "reproduced", "not reproduced", "not decidable at this size"
SEEDS = 3  # a verdict needs so many pairs
FACTOR = 2.0  # the effect must exceed so many standard deviations of the paired differences
RULE = (
    f"An effect is the difference of two arms of the same seed (so of the same batches in the same order), and its "
    f"spread the standard deviation over {SEEDS} or more seeds, which are all asked the same held-out questions. "
    f"**{REPRODUCED.capitalize()}**: the effect has the paper's sign in every seed, and its mean exceeds {FACTOR:g} "
    f"spreads. **{NOT_REPRODUCED.capitalize()}**: it has another sign in a seed, or is smaller. "
    f"**{NOT_DECIDABLE.capitalize()}**: there are fewer seeds, nothing here measures it, both arms are the same model, "
    "neither arm reaches the floor of what is compared, or the one that is said to do harm that of what it learnt."
)


@dataclass(frozen=True)
class Verdict:
    """``word`` is one of the three verdicts, ``reason`` says why in a few words; ``effects`` are the seeds'."""

    word: str
    reason: str
    effects: Sequence[float] = ()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.effects) if self.effects else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation (n - 1) of the effects; fewer than two have none."""
        return statistics.stdev(self.effects) if len(self.effects) > 1 else None


def judge(
    better: Sequence[float],
    worse: Sequence[float],
    equal: bool = False,
    lower: bool = False,
    at_least: float | None = None,
) -> Verdict:
    """The verdict on "``better`` is larger than ``worse``", by the rule above.

    Args:
        better, worse: the outcome of the two arms, paired by place: one seed each.
        equal: the claim is instead that both are the same, to the last digit.
        lower: the claim is instead that ``better`` is smaller (a loss).
        at_least: if both means are below it, the setting cannot test the claim.
    """
    effects = [one - other for one, other in zip(better, worse, strict=True)]
    if len(effects) < SEEDS:
        return Verdict(NOT_DECIDABLE, f"{len(effects)} of {SEEDS} seeds", effects)
    if at_least is not None and (largest := max(map(statistics.fmean, (better, worse)))) < at_least:
        reason = f"neither arm has more than {largest:.3g} on average, below {at_least:g}"
        return Verdict(NOT_DECIDABLE, reason, effects)
    if equal:
        differ = sum(effect != 0 for effect in effects)
        if differ:
            return Verdict(NOT_REPRODUCED, f"they differ in {differ} of {len(effects)} seeds", effects)
        return Verdict(REPRODUCED, f"the same in all {len(effects)} seeds", effects)
    gains = [-effect for effect in effects] if lower else effects
    against = sum(gain <= 0 for gain in gains)
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    if against == len(effects):
        return Verdict(NOT_REPRODUCED, "no effect, or the other sign, in every seed", effects)
    if against:
        return Verdict(NOT_REPRODUCED, f"no effect, or the other sign, in {against} of {len(effects)} seeds", effects)
    if mean <= FACTOR * spread:
        return Verdict(NOT_REPRODUCED, f"the paper's sign in every seed, but within {FACTOR:g} spreads", effects)
    return Verdict(REPRODUCED, "the paper's sign in every seed", effects)
