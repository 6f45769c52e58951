"""What a run writes into its folder while it trains."""

import csv
import io
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lav2.adapter import save_adapter
from lav2.disk import write_whole
from lav2.training.module import is_adapter
from lav2.training.sharding import whole
from lav2.training.tracking import wandb_logger


class MetricsFile(Logger):
    """``metrics.csv``: one row a logged step. A resumed run continues the file, without the steps that it repeats.

    (Lightning's CSVLogger deletes the file of the run it resumes.)
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.rows is None:
            with self.path.open(newline="") if self.path.is_file() else open(os.devnull) as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= metrics
        else:
            self.rows.append({"step": step, **metrics})

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew; whoever reads it finds it whole."""
        if not self.rows:
            return
        columns = ["step", *sorted(set().union(*self.rows) - {"step"})]
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, content.getvalue())

    def finalize(self, status: str) -> None:
        try:
            self.save()
        except OSError:
            if status != "failed":  # else the disk may be what it failed by, and that is told already
                raise


def loggers(folder: str | Path, wandb: dict[str, Any] | None = None) -> list[Logger]:
    """The loggers of a run: its ``metrics.csv`` and, with settings for it, a wandb run (see :func:`wandb_logger`)."""
    return [MetricsFile(folder), *([] if wandb is None else [wandb_logger(folder, **wandb)])]


class AdapterFolder(Callback):
    """Keeps ``adapter/`` up to date: at every checkpoint and at the end of training.

    Args:
        folder: the adapter folder.
        about: what :func:`lav2.adapter.save_adapter` stores beside the adapter.
    """

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        self.folder, self.about = folder, about

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.write(pl_module, checkpoint["state_dict"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(pl_module, trainer.strategy.lightning_module_state_dict())

    @rank_zero_only
    def write(self, pl_module: LightningModule, state: dict[str, Tensor]) -> None:
        adapter = {name.removeprefix("model.adapter."): value for name, value in state.items() if is_adapter(name)}
        save_adapter(self.folder, pl_module.model, adapter, **self.about)


class DataProblems(Callback):
    """Writes what is wrong with the data, every place of it, and which samples were cut."""

    def __init__(self, path: Path):
        self.path = path

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path.write_text(json.dumps(trainer.datamodule.summary(), indent=2) + "\n")


class Gates(Callback):
    """Logs how far the gates have opened: the mean of ``|tanh g|`` over heads, visual and adaptation prompts apart."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step % trainer.log_every_n_steps:
            return
        adapter = pl_module.model.adapter
        gates = {
            "adaptation": [layer.prompts.gate for layer in adapter["instruction"].layers if layer.prompts is not None]
        }
        if "caption" in adapter:
            gates["visual"] = list(adapter["caption"].gates)
        for kind, members in gates.items():
            if members:
                opened = [whole(gate(train=False)).abs().mean() for gate in members]
                pl_module.log(f"train/{kind}_gate", sum(opened) / len(opened))
