"""Which runs the claims need, which of them are done, and what is left to do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lav2.claims.claim import Arm, Claim, Setting, merged
from lav2.config import has_weights, problems
from lav2.errors import UserError
from lav2.evaluation.run import model_of
from lav2.evaluation.runs import read
from lav2.run_folder import CONFIG, RECORD, adapter_folder
from lav2.training.run import IDENTITY, compare

NAMES = ("arm", "name", "setting", "hydra", "callbacks", "logger", "resume")  # what makes no other model
WITHOUT_EFFECT = ("data.num_workers", "data.cache_dir", "trainer.log_every_n_steps")
TO_DO = "to do"
OVERHEAD = 250  # joint steps that cost as much as starting a run and measuring it; for the remaining time alone


@dataclass(frozen=True)
class Job:
    """One run: an arm in one seed, in ``folder``; ``needs`` is the run it starts from."""

    arm: Arm
    seed: int
    folder: Path
    config: DictConfig
    overrides: Sequence[str]
    abilities: Sequence[str]
    needs: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.arm.name}/{self.seed}"

    @property
    def steps(self) -> int:
        return self.config.trainer.max_steps

    @property
    def weight(self) -> float:
        """About how long it takes, in joint steps."""
        tasks = len(self.config.tasks) if self.config.data.mode == "max_size_cycle" else 1
        return OVERHEAD + self.steps * tasks / 2

    def changed(self) -> tuple[str, Any, Any] | None:
        """(name, value here, value there) of a setting in which the run in the folder is another one."""
        here = OmegaConf.create(OmegaConf.to_container(self.config, resolve=True))
        for name, value, there in compare(here, OmegaConf.load(self.folder / CONFIG)):
            if name.split(".")[0] in IDENTITY and name not in WITHOUT_EFFECT:
                return name, value, there
        return None

    def trained(self) -> bool:
        """Whether its training came to its end.

        Raises:
            UserError: the folder holds a run of other settings.
        """
        if read(self.folder / RECORD).get("state") != "finished":
            return False
        if different := self.changed():
            name, value, there = different
            raise UserError(
                f"{self.folder} holds a run with {name} {there!r}, and here it is {value!r}: remove that folder, "
                "or choose another with setting.folder"
            )
        return True

    def unmeasured(self, setting: Setting) -> list[str]:
        """The abilities that have not been measured yet, or of another adapter or with other settings."""
        left = []
        for ability in self.abilities:
            name, settings, config = setting.evaluations[ability]
            folder = self.folder / "evaluation" / name
            made = read(folder / "settings.json")
            there = (folder / "scores.json").is_file() and made.get("eval") == settings
            if not there or made.get("model") != model_of(config, adapter_folder(self.folder)):
                left.append(ability)
        return left

    def done(self, setting: Setting) -> bool:
        return self.trained() and not self.unmeasured(setting)

    def lacks(self, setting: Setting) -> str | None:
        """Why the run does not count yet, in a few words; ``None`` if it does."""
        if not (self.folder / CONFIG).is_file():
            return TO_DO
        if read(self.folder / RECORD).get("state") != "finished":
            return "not trained to the end"
        if different := self.changed():
            return f"trained with another {different[0]}"
        left = self.unmeasured(setting)
        return f"{' and '.join(left)} not measured with these settings" if left else None


@dataclass(frozen=True)
class Plan:
    """All runs, the first seed of every arm first; ``same`` is, for each arm, the arm whose runs are also its own."""

    jobs: Sequence[Job]
    same: Mapping[str, str]

    def of(self, arm: str) -> list[Job]:
        return [job for job in self.jobs if job.arm.name == self.same[arm]]

    def users(self, claims: Sequence[Claim]) -> dict[str, list[Claim]]:
        """For each arm that is run the claims that look at it, by whichever name."""
        found: dict[str, list[Claim]] = {}
        for claim in claims:
            for arm in dict.fromkeys(self.same[name] for name in claim.arms):
                found.setdefault(arm, []).append(claim)
        return found

    def show(self, claims: Sequence[Claim], setting: Setting) -> None:
        """Print every run, the first seeds first, and what is left to do."""
        users, lacking = self.users(claims), {job.folder: job.lacks(setting) for job in self.jobs}
        table = Table("arm", "seed", "claims that need it", "steps", "state", title=f"runs in {setting.folder}")
        for job in self.jobs:
            needed = ", ".join(claim.name for claim in users[job.arm.name])
            table.add_row(job.arm.name, str(job.seed), needed, f"{job.steps:,}", lacking[job.folder] or "done")
        done = [job for job in self.jobs if not lacking[job.folder]]
        left = [job for job in self.jobs if lacking[job.folder]]
        Console().print(table)
        print(f"{len(done)} of {len(self.jobs)} runs are done; {len(left)} runs of {total(left):,} steps are to do")
        seconds = [read(job.folder / RECORD).get("seconds", 0) for job in done]
        if left and any(seconds):
            minutes = sum(seconds) / total(done) * total(left) / 60
            print(f"at the pace of those, about {minutes:,.0f} minutes of training for one process, without measuring")


def total(jobs: Sequence[Job]) -> int:
    return sum(job.steps for job in jobs)


def make_plan(claims: Sequence[Claim], setting: Setting) -> Plan:
    """The runs that ``claims`` need; arms whose settings are the same are one.

    Raises:
        UserError: names all that is wrong with an arm's settings.
    """
    arms = merged(claims)
    configs = {name: setting.compose(arm) for name, arm in arms.items()}
    trained = (arm for arm in arms.values() if has_weights(configs[arm.name]))
    if unset := dict.fromkeys(one for arm in trained for one in setting.unset(arm, configs[arm.name])):
        missing = " ".join(f"{one}=…" for one in unset)
        raise UserError(f"{', '.join(unset)}: not set, and some arms need it; add {missing} to the command line")
    same: dict[str, str] = {}
    known: dict[str, str] = {}
    for name, config in configs.items():
        same[name] = known.setdefault(f"{arms[name].after} {identity(config)}", name)
    every = setting.values["seeds"]
    jobs = []
    for name in dict.fromkeys(same.values()):
        joined = [arms[one] for one in arms if same[one] == name]
        seeds = every if any(arm.seeds is None for arm in joined) else max(arm.seeds for arm in joined)
        wanted = {ability for arm in joined for ability in setting.abilities(arm, configs[name])}
        abilities = [ability for ability in setting.values["evaluations"] if ability in wanted]
        if found := problems(configs[name]):
            raise UserError(f"the arm {name}: {'; '.join(found)}")
        for seed in range(seeds):
            jobs.append(make_job(arms[name], seed, configs[name], abilities, setting, same))
    return Plan(sorted(jobs, key=lambda job: job.seed), same)


def make_job(
    arm: Arm, seed: int, config: DictConfig, abilities: Sequence[str], setting: Setting, same: Mapping[str, str]
) -> Job:
    config = config.copy()
    config.seed = seed
    needs = setting.folder / same[arm.after] / str(seed) if arm.after else None
    config.adapter_from = str(needs) if needs else None
    overrides = setting.train_overrides(arm, seed, needs)
    return Job(arm, seed, setting.folder / arm.name / str(seed), config, overrides, abilities, needs)


def identity(config: DictConfig) -> str:
    """What two configs share that make the same run."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    return json.dumps({name: value for name, value in values.items() if name not in NAMES}, sort_keys=True)
