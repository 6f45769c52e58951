"""Claims, their arms and their comparisons, as ``conf/experiment/claims/`` states them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lav2.cli import CONF
from lav2.errors import UserError

FOLDER = CONF / "experiment" / "claims"


@dataclass(frozen=True)
class Arm:
    """One model to train and to measure, in several seeds.

    Args:
        name: the same in every claim that looks at it: an arm that claims share is run once.
        label: what tells it from the claim's other arms.
        method: whose settings it starts from (``setting.methods``).
        overrides: what it changes in them, as on the command line; groups are a method's to choose.
        after: the arm whose adapter of the same seed training starts from.
        seeds: how many; default: as many as a verdict needs.
        evaluate: abilities measured besides what its tasks call for (``setting.evaluations``).
        full: only ``make claims-full`` runs it.
    """

    name: str
    label: str
    method: str = "v2"
    overrides: Sequence[str] = ()
    after: str | None = None
    seeds: int | None = None
    evaluate: Sequence[str] = ()
    full: bool = False

    @property
    def recipe(self) -> tuple:
        """What makes the run; claims must agree in it."""
        return self.method, tuple(self.overrides), self.after


@dataclass(frozen=True)
class Comparison:
    """What must come out for the paper to be right: the outcome of ``better`` is larger than that of ``worse``.

    Args:
        says: the claim in one sentence.
        better, worse: (arm, outcome) each.
        equal, lower: see :func:`lav2.claims.verdict.judge`.
        requires: (arm, outcome) that must reach the outcome's floor, or nothing can be decided: what is said to do
            harm must have been learnt.
        claimed: False for what the paper does not say, which is measured without a verdict.
        full: its arms are of ``make claims-full``.
    """

    says: str
    better: tuple[str, str]
    worse: tuple[str, str]
    equal: bool = False
    lower: bool = False
    requires: tuple[str, str] | None = None
    claimed: bool = True
    full: bool = False


@dataclass(frozen=True)
class Claim:
    """One claim of a paper: its words and numbers, the arms that test it, and the comparisons, the claim itself first.

    ``note`` says what a reader must know besides. ``curves`` asks for plots of metrics over the first steps,
    ``against`` for one of an outcome over ``parameters`` (how many learn) or ``steps``: {parameters: language}.
    """

    name: str
    title: str
    source: str
    paper: str
    arms: Mapping[str, Arm]
    comparisons: Sequence[Comparison]
    note: str = ""
    curves: Mapping[str, Any] = field(default_factory=dict)
    against: Mapping[str, str] = field(default_factory=dict)


class Setting:
    """What all arms share: the base, the data, how many steps, how each ability is measured (``conf/claims/``).

    Args:
        overrides: of the command line; ``claims=7b`` chooses another setting.
    """

    def __init__(self, overrides: Sequence[str] = ()):
        self.overrides = list(overrides)
        if not any(override.startswith("claims=") for override in self.overrides):
            self.overrides.insert(0, "claims=world")
        self.config = compose("train", self.overrides)
        self.values: Mapping[str, Any] = OmegaConf.to_container(self.config.setting, resolve=True)
        self.composed: dict[str, DictConfig] = {}
        self.folder, self.page = Path(self.values["folder"]), Path(self.values["page"])

    def train_overrides(self, arm: Arm, seed: int = 0, start: Path | None = None) -> list[str]:
        """What ``train.py`` is given for one run; ``start`` is the run whose adapter it starts from."""
        after = [f"adapter_from={start}"] if start else []
        return [*self.method_overrides(arm.method), *arm.overrides, *after, f"arm={arm.name}", f"seed={seed}"]

    def method_overrides(self, method: str) -> list[str]:
        if method not in self.values["methods"]:
            raise UserError(f"there is no method {method!r}; choose one of {', '.join(self.values['methods'])}")
        return [*self.overrides, *self.values["methods"][method]]

    def compose(self, arm: Arm) -> DictConfig:
        """The config that :meth:`train_overrides` make.

        A method is composed once and an arm's own overrides are then set as Hydra would: composing takes its time.
        """
        if arm.method not in self.composed:
            self.composed[arm.method] = compose("train", self.method_overrides(arm.method))
        config = self.composed[arm.method].copy()
        for override in OverridesParser.create().parse_overrides([*arm.overrides, f"arm={arm.name}"]):
            if (CONF / override.key_or_group).is_dir():
                raise UserError(f"arm {arm.name}: {override.input_line} chooses a group; let a method do so")
            OmegaConf.update(config, override.key_or_group, override.value())
        return config

    def unset(self, arm: Arm, config: DictConfig) -> list[str]:
        """What is null in the setting and an arm needs, to be trained or to be measured: ``setting.<name>`` each."""
        stated = OmegaConf.to_container(self.config.setting)
        used = [stated["methods"][arm.method], *(stated["evaluations"][one] for one in self.abilities(arm, config))]
        null = [f"setting.{name}" for name, value in self.values.items() if value is None]
        return [name for name in null if f"${{{name}}}" in str(used)]

    def abilities(self, arm: Arm, config: DictConfig) -> list[str]:
        """What is measured of an arm: of one that learnt no captions nothing that needs images."""
        needed = ["captions", "questions", "language"] if "caption" in config.tasks else ["language"]
        return [name for name in self.values["evaluations"] if name in (*needed, *arm.evaluate)]

    @cached_property
    def evaluations(self) -> dict[str, tuple[str, dict[str, Any], DictConfig]]:
        """For each ability the evaluation's name (its folder's), its settings, and all that evaluate.py gets."""
        found = {}
        for ability, overrides in self.values["evaluations"].items():
            config = compose("evaluate", [*overrides, "run=."])
            name = overrides[0].removeprefix("eval=")
            found[ability] = name, OmegaConf.to_container(config.eval, resolve=True), config
        return found


def read_claims(setting: Setting, full: bool = False, only: Sequence[str] = ()) -> list[Claim]:
    """The claims, or the ``only`` ones by name; with ``full`` those arms and comparisons too that take a night.

    Raises:
        UserError: a claim is unknown or malformed, or two claims mean different things by one arm.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"there is no claim {unknown[0]!r}; there are {', '.join(names)}")
    claims = [read_claim(name, setting, full) for name in names if not only or name in only]
    merged(claims)
    return claims


def read_claim(name: str, setting: Setting, full: bool) -> Claim:
    claim = OmegaConf.load(FOLDER / f"{name}.yaml").claim
    stated = OmegaConf.create({"setting": setting.values, "claim": claim})  # which it refers to
    values = OmegaConf.to_container(stated.claim, resolve=True)
    listed = {arm: made(Arm, f"{name}.{arm}", arm, entry) for arm, entry in values.pop("arms").items()}
    more = values.pop("full", {})
    if full:
        listed |= {arm: made(Arm, f"{name}.{arm}", arm, entry | {"full": True}) for arm, entry in more.items()}
    comparisons = [made(Comparison, name, None, one) for one in values.pop("comparisons")]
    comparisons = [one for one in comparisons if full or not one.full]
    for one in comparisons:
        for arm, _ in filter(None, (one.better, one.worse, one.requires)):
            if arm not in listed:
                raise UserError(f"claim {name}: a comparison names the arm {arm!r}, which is none of its arms")
    return Claim(name, arms=listed, comparisons=comparisons, **values)


def made(kind: type, where: str, name: str | None, values: Mapping[str, Any]) -> Any:
    """An arm or a comparison from plain values."""
    known = {f.name for f in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise UserError(f"claim {where}: there is no {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return kind(**({"name": name} if name else {}), **values)


def merged(claims: Sequence[Claim]) -> dict[str, Arm]:
    """Every arm of the claims once, with all that one of them measures of it, in as many seeds as one of them asks."""
    arms: dict[str, Arm] = {}
    for claim in claims:
        for arm in claim.arms.values():
            known = arms.setdefault(arm.name, arm)
            if known.recipe != arm.recipe:
                raise UserError(f"claim {claim.name}: its arm {arm.name!r} is another one in another claim; rename it")
            seeds = None if None in (known.seeds, arm.seeds) else max(known.seeds, arm.seeds)
            evaluate = tuple(dict.fromkeys([*known.evaluate, *arm.evaluate]))
            arms[arm.name] = Arm(arm.name, known.label, *arm.recipe, seeds, evaluate, known.full and arm.full)
    if missing := [arm for arm in arms.values() if arm.after and arm.after not in arms]:
        raise UserError(f"the arm {missing[0].name!r} starts after {missing[0].after!r}, which is not among the arms")
    return arms
