"""What came out of the runs, arm by arm and claim by claim."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lav2.claims.claim import Claim, Comparison, Setting
from lav2.claims.plan import TO_DO, Plan
from lav2.claims.verdict import NOT_DECIDABLE, Verdict, judge
from lav2.evaluation.runs import Run, Spread, read, read_run
from lav2.tasks import TASKS


@dataclass
class Results:
    """The runs of a plan as their folders hold them, by arm and seed.

    Only a run that is done counts, trained and measured with the settings of today; ``left_out`` says why another that
    is there does not.
    """

    plan: Plan
    setting: Setting

    def __post_init__(self):
        self.runs: dict[str, dict[int, Run]] = {}
        self.left_out: dict[str, str] = {}
        for job in self.plan.jobs:
            found = self.runs.setdefault(job.arm.name, {})
            reason = job.lacks(self.setting)
            if reason is None:
                found[job.seed] = read_run(job.folder)
            elif reason != TO_DO:
                self.left_out[job.name] = reason

    @property
    def missing(self) -> int:
        """How many of the planned runs do not count, or not yet."""
        return len(self.plan.jobs) - sum(len(found) for found in self.runs.values())

    def of(self, arm: str) -> Mapping[int, Run]:
        return self.runs[self.plan.same[arm]]

    def values(self, arm: str, outcome: str) -> dict[int, float]:
        """An outcome by seed, named as the claims do; of the runs that have it."""
        name = self.setting.values["outcomes"].get(outcome, outcome)
        return {seed: run.outcomes[name] for seed, run in self.of(arm).items() if name in run.outcomes}

    def trained_parameters(self, arm: str) -> int | None:
        """How many parameters an arm's tasks move: without captions no image is seen, and what sees stays as it is."""
        for run in self.of(arm).values():
            groups, tasks = read(run.folder / "parameters.json")["groups"], run.settings["tasks"]
            if run.settings["adapter.ownership"] == "shared" and "caption" in tasks:
                tasks = TASKS
            return sum(groups[task]["count"] for task in TASKS if task in tasks)
        return None

    def steps(self, arm: str) -> int:
        """How many steps an arm trains."""
        return self.plan.of(arm)[0].steps

    def spread(self, arm: str, outcome: str) -> Spread | None:
        values = list(self.values(arm, outcome).values())
        return Spread(values) if values else None

    def judge(self, comparison: Comparison) -> Verdict:
        """The verdict, seed paired with seed."""
        (one, outcome), (other, beside) = comparison.better, comparison.worse
        if self.plan.same[one] == self.plan.same[other] and outcome == beside:
            return Verdict(NOT_DECIDABLE, "both arms are the same model here")
        unknown = {outcome, beside} - self.setting.values["outcomes"].keys()
        if unknown:
            return Verdict(NOT_DECIDABLE, f"nothing here measures {min(unknown)}")
        better, worse, floors = self.values(one, outcome), self.values(other, beside), self.setting.values["floors"]
        seeds = sorted(better.keys() & worse.keys())
        pairs = [better[seed] for seed in seeds], [worse[seed] for seed in seeds]
        verdict = judge(*pairs, comparison.equal, comparison.lower, floors.get(outcome))
        if comparison.requires and verdict.word != NOT_DECIDABLE:
            arm, needed = comparison.requires
            learnt = Spread(list(self.values(arm, needed).values())).mean
            if learnt < floors[needed]:
                reason = f"{arm} has learnt too little: {needed} {learnt:.3g}, below {floors[needed]:g}"
                return Verdict(NOT_DECIDABLE, reason, verdict.effects)
        return verdict

    def outcomes(self, claim: Claim) -> list[str]:
        """What a claim's comparisons look at, in the order of the setting."""
        pairs = [pair for one in claim.comparisons for pair in (one.better, one.worse, one.requires) if pair]
        named = {name for _, name in pairs}
        return [name for name in self.setting.values["outcomes"] if name in named]


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """A column of a run's ``metrics.csv`` over the steps."""
    path = Path(run.folder) / "metrics.csv"
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        points = [(int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]
    return [step for step, _ in points], [value for _, value in points]


def mean_curve(runs: Sequence[Run], metric: str, steps: int) -> tuple[list[int], list[float], list[float], list[float]]:
    """The mean of several runs' curves over their common steps up to ``steps``, and the lowest and the highest."""
    curves = [dict(zip(*curve(run, metric), strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(one) for one in curves))) if curves else []
    common = [step for step in common if step <= steps]
    values = [[one[step] for one in curves] for step in common]
    means = [sum(one) / len(one) for one in values]
    return common, means, [min(one) for one in values], [max(one) for one in values]
