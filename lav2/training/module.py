"""Joint training with disjoint parameters (V2 paper, sec 4.2) as a LightningModule."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lav2.adapter import AdaptedLlama, owned, owner, trained_groups
from lav2.adapter.ownership import trains
from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.loading import check_tensors
from lav2.tasks import TASKS
from lav2.training.loss import labelled_tokens, response_loss, response_losses
from lav2.training.optimizers import TaskOptim, TaskOptimizers, learning_rate, schedule
from lav2.training.sharding import Sharding, whole

MOST_SKIPPED = 10  # steps of a group in a row; more are no accident


class JointModule(LightningModule):
    """Wraps an adapted LLaMA; every step sees one batch of each task, and each loss moves only its own group.

    Both losses are summed, so a step has one backward pass and every trainable parameter a gradient. Where the data
    give a step one task alone (``data.mode`` alternate or ratio), the other group's optimizer takes no step.

    Args:
        model: the adapted model.
        optim: for each group that ``tasks`` train how its parameters are optimized.
        tasks: what to train; the parameters of a task left out stay as they are.
        seed: of what a step draws (LaVIN's dropout).
        on_nan: ``stop`` at a step whose gradient is not finite, or ``skip`` it. Either names the batch, and nothing of
            it enters the parameters or the optimizers.
        checkpoint: what the base model's weights are read from once it is sharded; of a model that holds them, None.
        one_pass: take the batches of both tasks through the model together, block by block, so that sharded weights are
            gathered half as often; else one after the other. The gradients are the same.
    """

    strict_loading = False  # checkpoints hold the adapter only; on_load_checkpoint checks them strictly

    def __init__(
        self,
        model: AdaptedLlama,
        optim: Mapping[str, TaskOptim],
        tasks: Sequence[str] = TASKS,
        seed: int = 0,
        on_nan: str = "stop",
        checkpoint: Checkpoint | None = None,
        one_pass: bool = False,
    ):
        super().__init__()
        self.seed, self.on_nan, self.checkpoint, self.one_pass = seed, on_nan, checkpoint, one_pass
        self.step_losses: list[tuple[str, Tensor, Tensor]] = []  # task, loss, samples of each batch of this step
        self.skipped = 0
        self.model = model.train()
        self.tasks, self.ownership = list(tasks), model.config.ownership
        groups = trained_groups(model, tasks, self.ownership)
        self.optim = {group: optim[group] for group in groups}
        self.skipped_in_a_row = dict.fromkeys(groups, 0)
        for group in TASKS:
            for parameter in owned(model, group).values():
                parameter.requires_grad_(group in groups)

    def configure_model(self) -> None:
        """Under FSDP2, shard the model and read this process's share of the base weights."""
        if isinstance(self.trainer.strategy, Sharding):
            self.trainer.strategy.shard(self.model, self.checkpoint)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Let what a step draws depend on the seed and the step alone, so that a resumed run draws the same."""
        if batch_index % self.trainer.accumulate_grad_batches == 0:
            self.step_losses.clear()
            self.optimizer.begin()
        place = f"{self.seed} {self.current_epoch} {batch_index} {self.global_rank}"
        torch.manual_seed(zlib.crc32(place.encode()))

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_index: int) -> Tensor:
        counts = {task: labelled_tokens(rows) for task, rows in batch.items()}
        sees = next(iter(counts.values())).new_tensor(self.sees(batch))
        *counted, seeing = self.over_processes(counts | {"sees": sees}).values()
        counts = dict(zip(batch, counted, strict=True))
        if self.one_pass:
            losses = response_losses(self.model, batch, counts)
        else:
            losses = {task: response_loss(self.model, rows, task, counts[task]) for task, rows in batch.items()}
        self.optimizer.note_trained(self.reached(batch, bool(seeing)))
        for task, loss in losses.items():
            self.step_losses.append((task, loss.detach(), batch[task]["indices"]))
        for task, loss in self.over_processes(losses).items():
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
        reached = self.reached(batch, self.sees(batch))
        idle = [parameter for group in self.optim.keys() - reached for parameter in owned(self.model, group).values()]
        return 0.0 * torch.stack([parameter.sum() for parameter in idle]).sum() if idle else 0.0

    def sees(self, batch: Mapping[str, dict[str, Tensor]]) -> bool:
        """Whether images of this process teach what sees in this step."""
        return any("features" in rows and trains("caption", task, self.ownership) for task, rows in batch.items())

    def reached(self, batch: Mapping[str, dict[str, Tensor]], sees: bool) -> set[str]:
        """The groups that a step's losses reach; of one that sees no image not what sees."""
        groups = set(trained_groups(self.model, batch, self.ownership))
        return groups if sees else groups - {"caption"}

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

        DeepSpeed keeps the gradients to itself: a config that wants them clipped was refused, and what is not finite
        always stops the run (see :meth:`optimizer_step`).

        Raises:
            UserError: a gradient is not finite, as ``on_nan`` says. (Processes share their gradients, so all agree.)
        """
        finite = True
        for group, optim in self.optim.items():
            if isinstance(optimizer, TaskOptimizers) and optimizer.trains(group):
                clip = optim.clip if optim.clip is not None else float("inf")
                norm = whole(nn.utils.clip_grad_norm_(optimizer.parameters(group), clip))
                if torch.isfinite(norm):
                    self.skipped_in_a_row[group] = 0
                else:
                    finite = False
                    self.leave_out(group, optimizer)
                self.log(f"train/{group}_gradient_norm", norm)
            self.log(f"train/{group}_learning_rate", learning_rate(optimizer, group))
        if not isinstance(optimizer, TaskOptimizers):
            self.refuse_losses_that_are_not_finite()
        self.skipped += not finite
        if self.skipped:
            self.log("train/skipped_steps", float(self.skipped))

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Lightning's; DeepSpeed tells the common norm of the gradients when it has made the step, or has left it out.

        Raises:
            UserError: that norm is not finite.
        """
        super().optimizer_step(*arguments, **named)
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            norm = self.trainer.model.get_global_grad_norm()  # of the last step; None before the first
            if norm is not None and not math.isfinite(norm):
                raise UserError(
                    f"step {self.global_step}: the gradient is not finite: {self.suspects()}. Mend the data"
                )

    def leave_out(self, group: str, optimizer: TaskOptimizers) -> None:
        """Name the batch whose loss or gradient is not finite; stop, or let ``group`` take no step."""
        line = f"step {self.global_step}: the {group} group's gradient is not finite: {self.suspects()}"
        if self.on_nan == "stop" or self.skipped_in_a_row[group] >= MOST_SKIPPED:
            raise UserError(f"{line}. Mend the data, lower optim.{group}.optimizer.lr, or skip such steps: on_nan=skip")
        self.print(f"{line}. The step is left out.")
        self.skipped_in_a_row[group] += 1
        for parameter in optimizer.parameters(group):
            parameter.grad = None

    def refuse_losses_that_are_not_finite(self) -> None:
        total = torch.stack([loss for _, loss, _ in self.step_losses]).sum()
        if not torch.isfinite(self.over_processes({"losses": total})["losses"]):
            raise UserError(f"step {self.global_step}: a loss is not finite: {self.suspects()}. Mend the data")

    def suspects(self) -> str:
        """The batches of this step whose losses are not finite, of all processes; all batches if every loss is."""
        batches = self.batches_of_this_step()
        return "; ".join(
            f"{task} loss {loss:.4g}, samples {', '.join(places)}"
            for task, loss, places in [batch for batch in batches if not math.isfinite(batch[1])] or batches
        )

    def batches_of_this_step(self) -> list[tuple[str, float, list[str]]]:
        """Task, loss and the samples' places in the data files, of the batches of all processes."""
        data = self.trainer.datamodule.training
        batches = [
            (task, loss.item(), [data[task].places[row] for row in rows.tolist()])
            for task, loss, rows in self.step_losses
        ]
        if self.trainer.world_size == 1:
            return batches
        gathered = [batches] * self.trainer.world_size
        torch.distributed.all_gather_object(gathered, batches)
        return [batch for share in gathered for batch in share]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter only: megabytes, not the base weights."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if is_adapter(name)}
        checkpoint["skipped_steps"], checkpoint["skipped_in_a_row"] = self.skipped, self.skipped_in_a_row

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another adapter: missing, unexpected or misshapen parameters.

        Raises:
            UserError: names the first parameter of each kind that does not fit.
        """
        if "state_dict" not in checkpoint:
            return  # DeepSpeed has loaded and checked its own, and leaves out no step
        self.skipped = checkpoint["skipped_steps"]
        self.skipped_in_a_row |= checkpoint.get("skipped_in_a_row", {})  # older ones do not say
        expected = {name: value.shape for name, value in self.state_dict().items() if is_adapter(name)}
        check_tensors(checkpoint["state_dict"], expected, "the checkpoint")


def is_adapter(name: str) -> bool:
    """Whether a name in this module's state dict belongs to the adapter."""
    return owner(name.removeprefix("model.")) in TASKS
