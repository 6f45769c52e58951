"""The next token of each row from its logits: the likeliest, or a draw. B rows, V vocabulary."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lav2.llama.settings import GenerationSettings


class Sampler:
    """Chooses the next token of each row.

    Each row draws from numbers of its own, made from the seed and the row's number in the whole call, so that a sample
    depends neither on the other rows nor on how they are batched.

    Args:
        settings: how to choose.
        prompts: token ids of each row.
        rows: the rows' numbers in the whole call.
        steps: the most tokens that will be chosen for a row; a larger number changes none of them.
        like: the embedding (V, C).
    """

    def __init__(
        self, settings: GenerationSettings, prompts: list[list[int]], rows: Sequence[int], steps: int, like: Tensor
    ):
        self.settings = settings
        self.step = 0
        self.draws: Tensor | None = None  # (B, steps) in [0, 1)
        self.seen = seen_tokens(prompts, like) if settings.repetition_penalty != 1 else None
        if settings.samples:
            draws = [np.random.default_rng((settings.seed, row)).random(steps, np.float32) for row in rows]
            self.draws = torch.from_numpy(np.stack(draws)).to(like.device)

    def __call__(self, logits: Tensor) -> Tensor:
        """One token a row (B,) from ``logits`` (B, V)."""
        settings = self.settings
        if self.seen is not None:
            logits = penalize(logits, self.seen, settings.repetition_penalty)
        if self.draws is None:
            chosen = logits.argmax(-1)
        else:
            scores = keep_likeliest(logits / settings.temperature, settings.top_k, settings.top_p)
            chosen = draw(scores.softmax(-1), self.draws[:, self.step])
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        self.step += 1
        return chosen

    def select(self, rows: Tensor) -> None:
        """Go on with ``rows`` (R,) of the batch."""
        self.draws = None if self.draws is None else self.draws[rows]
        self.seen = None if self.seen is None else self.seen[rows]


def seen_tokens(prompts: list[list[int]], like: Tensor) -> Tensor:
    """Which tokens stand in each prompt, (B, V); ``like`` is the embedding (V, C)."""
    seen = torch.zeros(len(prompts), len(like), dtype=torch.bool, device=like.device)
    for row, prompt in enumerate(prompts):
        words = [token for token in prompt if token >= 0]  # the places of images are none
        seen[row, torch.tensor(words, device=like.device)] = True
    return seen


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """``scores`` (B, V) with those of ``seen`` tokens divided by ``penalty``, or multiplied where negative (CTRL)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_likeliest(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """``scores`` (B, V) with -inf for the tokens outside of the ``top_k`` likeliest and outside of ``top_p``.

    ``top_p`` looks at what ``top_k`` leaves; one token at least is kept.
    """
    if top_p == 1 and not 0 < top_k < scores.shape[-1]:
        return scores
    if 0 < top_k < scores.shape[-1]:
        likeliest, order = scores.topk(top_k)
    else:
        likeliest, order = scores.sort(descending=True)
    if top_p < 1:
        probabilities = likeliest.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        likeliest = likeliest.masked_fill(before >= top_p, -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter(-1, order, likeliest)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """One token a row (B,): where ``numbers`` (B,) in [0, 1) fall among the summed ``probabilities`` (B, V)."""
    sums = probabilities.cumsum(-1)
    # The last sum may miss 1 by rounding; its product with a number below 1 is below it, so a token is always found.
    return torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)[:, 0]
