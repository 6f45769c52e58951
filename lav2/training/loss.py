"""The training loss: cross entropy over the tokens of the response."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lav2.adapter import AdaptedLlama
from lav2.data.tokens import IGNORE


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
    hidden = model.hidden(batch["tokens"][:, :-1], batch.get("features"), task, batch.get("has_image"))
    labels = batch["labels"][:, 1:]
    labelled = labels != IGNORE
    logits = model.llama.logits(hidden[labelled]).float()  # (labelled tokens, V)
    count = labelled.sum() if count is None else count
    return F.cross_entropy(logits, labels[labelled], reduction="sum") / torch.where(count > 0, count, 1)
