"""What Hydra and OmegaConf say of a mistake on the command line, in one line that shows the way out."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

CONF = Path(__file__).parents[1] / "conf"


def reworded(error: HydraException | OmegaConfBaseException) -> str:
    """The mistake in our words where they are clearer; else the messages of ``error`` and of its cause."""
    text, cause = one_line(error), error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return no_choice(error.missing_cfg_file, error.options)
    if isinstance(error, HydraException) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return no_setting(cause)
    if missing := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        name = missing[1]
        return f"{name} is not given: add {name}=" + ("<a run folder, as train.py leaves it>" if name == "run" else "…")
    return text


def no_choice(config: str, options: Iterable[str] | None) -> str:
    """A group has no such choice; ``options`` is Hydra's list, where it has one, without those in folders."""
    group, _, name = config.rpartition("/") if config.startswith("hydra/") else config.partition("/")
    own = [path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml")]
    choices = sorted({*(options or ()), *own})
    if not name or not choices:
        return f"there is no config {config!r}"
    return f"{group}: there is no {name!r}{nearest(name, choices)}; choose one of {', '.join(choices)}"


def no_setting(error: ConfigAttributeError | ConfigKeyError) -> str:
    """A section has no such setting."""
    section, dot, name = error.full_key.rpartition(".")
    known = [str(key) for key in error.parent_node or ()]
    groups = [] if section else [path.name for path in CONF.iterdir() if path.is_dir()]  # one may have no choice yet
    near = nearest(name, known + groups, section + dot)
    listed = f"; {section or 'the config'} has {', '.join(known)}" if known else ""
    return f"there is no setting {error.full_key}{near}{listed}"


def nearest(name: str, known: Iterable[str], section: str = "") -> str:
    found = difflib.get_close_matches(name, known, 1)
    return f", the nearest is {section}{found[0]}" if found else ""


def one_line(error: BaseException) -> str:
    """The message of ``error`` and of its cause, if that says more, in one line."""
    parts = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__))
    return " ".join(" ".join(parts).split())
