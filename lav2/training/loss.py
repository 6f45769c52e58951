"""The training loss: cross entropy over the tokens of the response."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lav2.adapter import AdaptedLlama
from lav2.data.tokens import IGNORE
from lav2.llama.kernels import loss_and_slope


def labelled_tokens(batch: dict[str, Tensor]) -> Tensor:
    """How many tokens of ``batch`` are labelled and so count in its loss."""
    return (batch["labels"][:, 1:] != IGNORE).sum()


def response_loss(
    model: AdaptedLlama, batch: dict[str, Tensor], task: str | None, count: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood, in nats a token, of the labelled tokens of ``batch``; 0 if it has none.

    Logits are computed where there are labels and nowhere else.

    Args:
        batch: ``tokens`` and ``labels`` (B, T), and for images ``features`` (B, S, F) and, where only
            some rows have one, ``has_image`` (B,); see :func:`lav2.data.collate`.
        task: whose parameters get gradients; see :meth:`AdaptedLlama.forward`.
        count: divides the sum over the labelled tokens, in the place of their number. With the mean of that number over
            all processes, the mean of their losses is the mean over all processes' tokens.
    """
    return labelled_loss(model, model.hidden(*passed(batch, task)), batch["labels"], count)


def response_losses(
    model: AdaptedLlama, batches: Mapping[str, dict[str, Tensor]], counts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """:func:`response_loss` of each task's batch, with all batches in one pass through the model."""
    hidden = model.hidden_of_each([passed(batch, task) for task, batch in batches.items()])
    return {
        task: labelled_loss(model, states, batches[task]["labels"], counts[task])
        for task, states in zip(batches, hidden, strict=True)
    }


def passed(batch: dict[str, Tensor], task: str | None) -> tuple:
    """What of ``batch`` :meth:`AdaptedLlama.hidden` takes; nothing is predicted from the last token."""
    return batch["tokens"][:, :-1], batch.get("features"), task, batch.get("has_image")


def labelled_loss(model: AdaptedLlama, hidden: Tensor, labels: Tensor, count: Tensor | None) -> Tensor:
    """:func:`response_loss`, from the hidden states (B, T - 1, C) and the labels (B, T)."""
    labels = labels[:, 1:]
    labelled = labels != IGNORE
    count = labelled.sum() if count is None else count
    return FrozenHeadLoss.apply(hidden[labelled], labels[labelled], model.llama.head, torch.where(count > 0, count, 1))


class FrozenHeadLoss(torch.autograd.Function):
    """The cross entropies of tokens behind a frozen head, summed and divided, some rows of logits at a time.

    Since nothing in the head trains, the gradient of the hidden states is known as soon as the logits are: it is
    computed with them, and no logits are kept. It is divided before it is rounded: to divide bf16 numbers by 257 makes
    all of them 0.2 % too small.

    It takes the head's weight, no module: under FSDP2 and DeepSpeed's ZeRO-3 a weight that the root reads is gathered
    once a step, a module each time it is called. That is as often as a process has labels for, which no two processes
    do alike, and they would wait for each other for ever.
    """

    ELEMENTS = 2**23  # of the logits at a time: 32 MB

    @staticmethod
    def forward(ctx, hidden: Tensor, labels: Tensor, head: Tensor, divisor: Tensor) -> Tensor:
        """``hidden`` (N, C), ``labels`` (N,), the ``head`` (V, C) and what the sum is divided by → a number."""
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = hidden.new_zeros((), dtype=torch.float32)
        count = max(1, FrozenHeadLoss.ELEMENTS // len(head))
        for start in range(0, len(hidden), count):
            rows = slice(start, start + count)
            with torch.set_grad_enabled(wanted):
                states = hidden[rows].detach().requires_grad_(wanted)
                logits = F.linear(states, head)
            loss, slope = loss_and_slope(logits.detach(), labels[rows])
            total += loss
            if wanted:
                (gradient[rows],) = torch.autograd.grad(logits, states, (slope / divisor).to(logits.dtype))
        ctx.save_for_backward(gradient)
        return total / divisor

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * slope.to(gradient.dtype), None, None, None
