"""Many run folders side by side: what was varied against what came out, seeds joined to a mean and its spread.

A run is read from what its folder holds: ``config.yaml`` (the settings), ``run.json`` (how it ended, seconds, memory),
``parameters.json``, ``metrics.csv`` and ``evaluation/*/scores.json`` (what came out). None of them must be there.
"""

import csv
import json
import math
import os
import socket
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lav2.errors import UserError
from lav2.run_folder import CONFIG, RECORD

# Settings that say where a run lies or what it prints, and the seed, which gives the spread
NO_SETTING = ("seed", "name", "resume", "logger", "callbacks", "data_report")
TAIL = 0.1  # a training loss is the mean over this last part of the logged steps: one batch's says little


@dataclass(frozen=True)
class Run:
    """One run folder: its settings by dotted name, how it ended, and what came out by name.

    ``state`` is ``finished``, ``failed``, ``stopped``, ``running`` or ``killed`` (known on the machine it ran
    on); ``unknown`` without a ``run.json``, ``unreadable`` where a file is damaged. ``reason`` says why. ``scored``
    holds for each evaluation how it was made: its split, its settings and the base's data type.
    """

    folder: Path
    settings: Mapping[str, Any]
    outcomes: Mapping[str, float]
    state: str = "unknown"
    reason: str = ""
    scored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def counts(self) -> bool:
        """Whether its outcomes enter a mean: a run that did not end says nothing about the end."""
        return self.state in ("finished", "unknown")


@dataclass(frozen=True)
class Spread:
    """The values of one outcome over seeds."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); one value has none, nor have values that are not finite."""
        known = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if known else None

    def __str__(self) -> str:
        """Two digits of the standard deviation, and as many places of the mean."""
        if not self.std:
            return show(self.mean) if self.std is None else f"{show(self.mean)} ± 0"
        places = max(0, 1 - math.floor(math.log10(self.std)))
        return f"{self.mean:,.{places}f} ± {self.std:,.{places}f}"


@dataclass(frozen=True)
class Group:
    """Runs that agree in the varied settings and differ in the seed at most; ``outcomes`` is of those that count."""

    settings: Mapping[str, Any]
    runs: Sequence[Run]
    outcomes: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def counted(self) -> list[Run]:
        return [run for run in self.runs if run.counts]


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in ``folders``, each a run folder or one above some, such as a sweep's; in the order of their names.

    Raises:
        UserError: a folder is not there or holds no run.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name a run folder, or one above some such as outputs/demo")
        places = {path.parent for name in (CONFIG, RECORD) for path in folder.rglob(name)}
        if not places:
            raise UserError(f"{folder}: no run there ({CONFIG} is missing); name a run folder or one above some")
        for place in sorted(places, key=natural):
            try:
                found[place.resolve()] = read_run(place)
            except UserError as error:  # the others are told of all the same
                found[place.resolve()] = Run(place, {}, {}, "unreadable", str(error))
    return list(found.values())


def read_run(folder: str | Path) -> Run:
    """What ``folder`` holds of a run.

    Raises:
        UserError: a file of it cannot be read; names it.
    """
    folder = Path(folder)
    record = read(folder / RECORD)
    outcomes: dict[str, float] = losses(folder / "metrics.csv")
    scored = {}
    for path in sorted(folder.glob("evaluation/*/scores.json")):
        scores = read(path)
        outcomes |= {f"{path.parent.name}/{name}": value for name, value in leaves(scores) if is_number(value)}
        scored[path.parent.name] = conditions(scores, read(path.with_name("settings.json")))
    if trainable := read(folder / "parameters.json").get("trainable"):
        outcomes["trainable_parameters"] = trainable
    outcomes |= {name: record[name] for name in ("seconds", "peak_memory_mb") if is_number(record.get(name))}
    settings = {name: str(value) if isinstance(value, list) else value for name, value in leaves(read(folder / CONFIG))}
    state = record.get("state", "unknown")
    if state == "running" and is_gone(record.get("process", "")):
        state = "killed"
    return Run(folder, settings, outcomes, state, record.get("reason") or "", scored)


def conditions(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's scores depend on besides the run; where its files lie is left out."""
    made = [pair for part in ("eval", "model") for pair in leaves(settings.get(part) or {})]
    values = {name: value for name, value in made if name != "adapter" and os.sep not in str(value)}
    return {"split": scores.get("split")} | values


def is_gone(process: str) -> bool:
    """Whether a process, ``host:number``, is known to have ended."""
    host, _, number = process.rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def losses(metrics: Path) -> dict[str, float]:
    """The last validation loss of each task, and each training loss over the last part of the run."""
    if not metrics.is_file():
        return {}
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name in rows[0] if rows else ():
        values = [float(row[name]) for row in rows if row[name]]
        if name.startswith("train/"):  # without the steps that on_nan=skip left out
            values = [value for value in values if math.isfinite(value)]
        if name.endswith("_loss") and values:
            last = 1 if name.startswith("val/") else math.ceil(TAIL * len(values))
            found[name] = statistics.fmean(values[-last:])
    return dict(sorted(found.items(), reverse=True))  # validation first


def varied(runs: Sequence[Run]) -> list[str]:
    """The settings in which ``runs`` differ, by dotted name; a setting that one has and another lacks differs too."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if name.split(".")[0] not in NO_SETTING
        and len({repr(run.settings.get(name)) for run in runs if run.settings}) > 1
    ]


def unlike(runs: Iterable[Run]) -> dict[str, list[str]]:
    """The evaluations that were not made alike in all ``runs`` that count → in what they differ."""
    scored: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for name, made in run.scored.items() if run.counts else ():
            scored.setdefault(name, []).append(made)
    found = {}
    for name, each in scored.items():
        settings = dict.fromkeys(setting for made in each for setting in made)
        found[name] = [one for one in settings if len({repr(made.get(one)) for made in each}) > 1]
    return {name: differing for name, differing in found.items() if differing}


def group_runs(runs: Sequence[Run], by: Sequence[str] | None = None) -> list[Group]:
    """Join the runs that agree in the settings ``by`` (default: all varied ones), so that seeds become a spread.

    Groups are in the order of their settings; an outcome is of the runs that finished and have it. Scores that were not
    made alike (see :func:`unlike`) have no mean.
    """
    names = varied(runs) if by is None else by
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr([run.settings.get(name) for name in names]), []).append(run)
    groups = []
    for alike in members.values():
        counted = [run.outcomes for run in alike if run.counts]
        mixed = unlike(alike)
        names_of = [name for name in outcome_names(alike) if name.split("/")[0] not in mixed]
        values = {name: Spread([one[name] for one in counted if name in one]) for name in names_of}
        settings = {name: alike[0].settings.get(name) for name in names}
        groups.append(Group(settings, alike, {name: spread for name, spread in values.items() if spread.values}))
    return sorted(groups, key=lambda group: [order(value) for value in group.settings.values()])


def outcome_names(runs: Iterable[Run]) -> list[str]:
    """Every outcome that one of ``runs`` has: losses first, then scores, then what it took."""
    names = dict.fromkeys(name for run in runs for name in run.outcomes)
    kinds = ("val/", "train/"), ("trainable_parameters", "seconds", "peak_memory_mb")
    return sorted(names, key=lambda name: 0 if name.startswith(kinds[0]) else 2 if name in kinds[1] else 1)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.create(text))
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def order(value: Any) -> tuple:
    """Sorts numbers by size, before words by the alphabet, before nothing."""
    return (0, value, "") if is_number(value) else (1 if value is not None else 2, 0, str(value))


def natural(path: Path) -> tuple:
    """Sorts job 2 before job 10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts)


def show(value: Any) -> str:
    """A value as people write it: four digits, thousands set apart, ``–`` for nothing."""
    if value is None:
        return "–"
    if not is_number(value):
        return str(value)
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
