"""From a run folder to scores."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lav2.config import DTYPES, construct
from lav2.errors import UserError
from lav2.inference import load


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score the run ``cfg.run`` as ``cfg.eval`` says; print the scores and leave them in its ``evaluation/`` folder.

    Raises:
        UserError: the run, its base model or what is to be scored is missing; found before any weight is read.
    """
    folder = Path(cfg.run)
    if cfg.dtype not in DTYPES:
        raise UserError(f"dtype is {cfg.dtype!r}; choose one of {', '.join(DTYPES)}")
    if not (folder / "adapter").is_dir():
        raise UserError(f"run={folder}: no run folder there (adapter/ is missing)")
    task = construct("eval", cfg.eval)
    results = task.run(load(folder, cfg.base, cfg.vision_weights, DTYPES[cfg.dtype]))
    results.settings |= {"eval": OmegaConf.to_container(cfg.eval, resolve=True), "dtype": cfg.dtype}
    where = results.write(folder)
    task.report(results, folder).write(where / "report.html")
    print_scores(results.scores, results.name)
    print(f"scores, predictions and report.html are in {where}")
    return results.scores


def print_scores(scores: dict[str, Any], title: str) -> None:
    table = Table("score", "value", title=title)
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
