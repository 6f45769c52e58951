"""From a run folder to scores."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lav2.adapter import read_adapter_config
from lav2.config import DTYPES, construct
from lav2.errors import UserError
from lav2.evaluation.predict import Predictor, model_identity
from lav2.evaluation.results import Results
from lav2.inference import find_quantization, load
from lav2.run_folder import CONFIG, adapter_folder


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score the run ``cfg.run`` as ``cfg.eval`` says; print the scores and leave them in its ``evaluation/`` folder.

    An adapter folder will do, converted or pulled from the Hub: its evaluations lie in it. Those of a run's own
    ``adapter/`` lie in the run folder.

    Answers are kept as they are made: a stopped evaluation goes on where it stood, and a finished one is not computed
    again (see :mod:`lav2.evaluation.predict`).

    Raises:
        UserError: the run, its base model or what is to be scored is missing; found before any weight is read.
    """
    folder = Path(cfg.run)
    if cfg.dtype not in DTYPES:
        raise UserError(f"dtype is {cfg.dtype!r}; choose one of {', '.join(DTYPES)}")
    adapter = adapter_folder(folder)
    if adapter == folder and folder.name == "adapter" and (folder.parent / CONFIG).is_file():
        folder = folder.parent
    if cfg.experts and "experts" not in cfg.eval:
        raise UserError("experts=… is for eval=experts alone, no other evaluation asks them: leave it out")
    task = construct("eval", cfg.eval)
    config = read_adapter_config(adapter)
    model = model_of(cfg, adapter)
    predictor = Predictor(
        partial(load, adapter, cfg.base, cfg.vision_weights, DTYPES[cfg.dtype], quantize=model.get("quantize")),
        model,
        folder / "evaluation" / task.name,
        config["caption_prompts"],
    )
    results = task.run(predictor)
    results.settings |= {"eval": OmegaConf.to_container(cfg.eval, resolve=True), "model": predictor.model}
    where = results.write(folder)
    report = task.report(results, folder)
    report.write(where / "report.html")
    print_scores(results)
    print(f"scores, predictions and report.html are in {where}")
    return results.scores


def model_of(cfg: DictConfig, adapter: Path) -> dict[str, str | None]:
    """What the answers to ``cfg``'s questions depend on: see :func:`lav2.evaluation.predict.model_identity`."""
    settings = {"base": cfg.base, "vision_weights": cfg.vision_weights, "dtype": cfg.dtype}
    if (quantize := find_quantization(read_adapter_config(adapter), cfg.quantize)) is not None:
        settings["quantize"] = quantize
    return model_identity(adapter, **settings)


def print_scores(results: Results) -> None:
    """The scores, headed by what was scored, and the tables."""
    split = results.scores.get("split")
    table = Table("score", "value", title=f"{results.name}, {split}" if split else results.name)
    for name, value in results.scores.items():
        table.add_row(name, _cell(value, digits=4))
    console = Console()
    console.print(table)
    for one in results.tables:
        table = Table(title=one.title, box=None, padding=(0, 1, 0, 0))  # nine columns fit into 80 characters
        for place, name in enumerate(one.header):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in one.rows:
            table.add_row(*map(_cell, row))
        console.print(table)


def _cell(value: Any, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)
