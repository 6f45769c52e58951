"""A classifier on a frozen transformer under Lightning: its prompts, gates and head train (V1 paper)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor

from lav2.adapter.classifier import ZeroInitClassifier


class ClassificationModule(LightningModule):
    """Cross entropy of batches (inputs, labels), by AdamW at a rate that rises for a tenth of the steps and falls.

    Args:
        model: the classifier; its inputs are images or what a tokenizer gives.
        learning_rate: the highest, of prompts, gates and head alike.
    """

    strict_loading = False  # checkpoints leave the backbone out

    def __init__(self, model: ZeroInitClassifier, learning_rate: float):
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch: tuple[Tensor | Mapping[str, Tensor], Tensor], batch_index: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def test_step(self, batch: tuple[Tensor | Mapping[str, Tensor], Tensor], batch_index: int) -> None:
        inputs, labels = batch
        right = (self.model(inputs).argmax(-1) == labels).float()
        self.log("accuracy", right.mean(), batch_size=len(labels))

    def validation_step(self, batch: tuple[Tensor | Mapping[str, Tensor], Tensor], batch_index: int) -> None:
        self.test_step(batch, batch_index)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        trained = self.model.trained()
        checkpoint["state_dict"] = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.model.trained().values(), self.learning_rate, weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tokenized(tokenizer: Any) -> Callable[[Sequence[tuple[str, int]]], tuple[dict[str, Tensor], Tensor]]:
    """A loader's ``collate_fn`` for samples (text, class): what ``tokenizer``, one of transformers', gives; labels."""

    def collate(rows: Sequence[tuple[str, int]]) -> tuple[dict[str, Tensor], Tensor]:
        texts, labels = zip(*rows, strict=True)
        return dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")), torch.tensor(labels)

    return collate
