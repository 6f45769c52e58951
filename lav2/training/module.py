"""Joint training with disjoint parameters (V2 paper, sec 4.2) as a LightningModule."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lav2.adapter import AdaptedLlama, owned, owner, trained_groups
from lav2.adapter.ownership import trains
from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.loading import check_tensors
from lav2.tasks import TASKS
from lav2.training.loss import labelled_tokens, response_loss
from lav2.training.optimizers import TaskOptim, TaskOptimizers, learning_rate, schedule
from lav2.training.sharding import Sharding, whole


class JointModule(LightningModule):
    """Wraps an adapted LLaMA; every step sees one batch of each task, and each loss moves only its own group.

    Both losses are summed, so a step has one backward pass and every trainable parameter a gradient. Where the data
    give a step one task alone (``data.mode`` alternate or ratio), the other group's optimizer takes no step.

    Args:
        model: the adapted model.
        optim: for each group that ``tasks`` train how its parameters are optimized.
        tasks: what to train; the parameters of a task left out stay as they are.
        seed: of what a step draws (LaVIN's dropout).
        checkpoint: what the base model's weights are read from once it is sharded; of a model that holds them, None.
    """

    strict_loading = False  # checkpoints hold the adapter only; on_load_checkpoint checks them strictly

    def __init__(
        self,
        model: AdaptedLlama,
        optim: Mapping[str, TaskOptim],
        tasks: Sequence[str] = TASKS,
        seed: int = 0,
        checkpoint: Checkpoint | None = None,
    ):
        super().__init__()
        self.seed, self.checkpoint = seed, checkpoint
        self.model = model.train()
        self.tasks, self.ownership = list(tasks), model.config.ownership
        groups = trained_groups(model, tasks, self.ownership)
        self.optim = {group: optim[group] for group in groups}
        for group in TASKS:
            for parameter in owned(model, group).values():
                parameter.requires_grad_(group in groups)

    def configure_model(self) -> None:
        """Under FSDP2, shard the model and read this process's share of the base weights."""
        if isinstance(self.trainer.strategy, Sharding):
            self.trainer.strategy.shard(self.model, self.checkpoint)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Let what a step draws depend on the seed and the step alone, so that a resumed run draws the same."""
        place = f"{self.seed} {self.current_epoch} {batch_index} {self.global_rank}"
        torch.manual_seed(zlib.crc32(place.encode()))

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_index: int) -> Tensor:
        counts = self.over_processes({task: labelled_tokens(rows) for task, rows in batch.items()})
        losses = {task: response_loss(self.model, rows, task, counts[task]) for task, rows in batch.items()}
        self.optimizer.note_trained(trained_groups(self.model, batch, self.ownership))
        for task, loss in self.over_processes(losses).items():
            if not torch.isfinite(loss):
                raise UserError(
                    f"the {task} loss became {loss.item()} at step {self.global_step}: lower "
                    f"optim.{task}.optimizer.lr, or resume from the last checkpoint with another seed"
                )
            self.log(f"train/{task}_loss", loss, prog_bar=True)
        return torch.stack(list(losses.values())).sum() + self.untouched(batch)

    def over_processes(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each value over all processes, without a gradient.

        Processes have unequal numbers of labelled tokens: divided by their mean number, the mean of the losses (and of
        the gradients, which is what strategies take) is that of one process with all the samples.
        """
        means = self.trainer.strategy.reduce(torch.stack([*values.values()]).detach().float(), reduce_op="mean")
        return dict(zip(values, means, strict=True))

    def untouched(self, batch: dict[str, dict[str, Tensor]]) -> Tensor | float:
        """0, through the parameters that this step does not reach: DDP waits for the gradients of all.

        A step of one task reaches its groups alone, and one without an image not what sees.
        """
        reached = set(trained_groups(self.model, batch, self.ownership))
        if not any("features" in rows and trains("caption", task, self.ownership) for task, rows in batch.items()):
            reached.discard("caption")
        idle = [parameter for group in self.optim.keys() - reached for parameter in owned(self.model, group).values()]
        return 0.0 * torch.stack([parameter.sum() for parameter in idle]).sum() if idle else 0.0

    def validation_step(self, batch: dict[str, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        task = list(self.trainer.val_dataloaders)[dataloader_idx]
        loss = response_loss(self.model, batch, task)
        weight = max(1, int(labelled_tokens(batch)))  # the mean over all tokens, however they come in batches
        self.log(f"val/{task}_loss", loss, batch_size=weight, add_dataloader_idx=False, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        self.optimizer = TaskOptimizers(  # kept, because DeepSpeed wraps what it is given
            {group: optim.build(group, owned(self.model, group)) for group, optim in self.optim.items()}
        )
        scheduler = schedule(self.optimizer, self.optim, self.trainer.estimated_stepping_batches)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Optimizer, **_: Any) -> None:
        """Clip each group's gradient by itself: one common norm would let one task scale the other's step.

        DeepSpeed keeps the gradients to itself; a config that wants them clipped was refused.
        """
        for group, optim in self.optim.items():
            if isinstance(optimizer, TaskOptimizers):
                clip = optim.clip if optim.clip is not None else float("inf")
                norm = whole(nn.utils.clip_grad_norm_(optimizer.parameters(group), clip))
                self.log(f"train/{group}_gradient_norm", norm)
            self.log(f"train/{group}_learning_rate", learning_rate(optimizer, group))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter only: megabytes, not the base weights."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if is_adapter(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another adapter: missing, unexpected or misshapen parameters.

        Raises:
            UserError: names the first parameter of each kind that does not fit.
        """
        if "state_dict" not in checkpoint:
            return  # DeepSpeed has loaded and checked its own
        expected = {name: value.shape for name, value in self.state_dict().items() if is_adapter(name)}
        check_tensors(checkpoint["state_dict"], expected, "the checkpoint")


def is_adapter(name: str) -> bool:
    """Whether a name in this module's state dict belongs to the adapter."""
    return owner(name.removeprefix("model.")) in TASKS
