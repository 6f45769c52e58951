"""What every way to generate shares: the forward passes of a batch, and when an answer ends.

Notation: B rows in the batch, S slots of the cache (padding, prompt and answer), V vocabulary, D head_size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.config import LlamaConfig
from lav2.llama.model import BlockHooks, KVCache, Llama
from lav2.llama.settings import GenerationSettings
from lav2.llama.text import AnswerText


class Decoder:
    """A batch on its way through the model: the prompts at once, then one token a row at a time.

    Prompts of unequal length are padded on the left, so that one cache serves all rows. What depends on the slot alone,
    rotary turns and what padding hides, is computed once for all slots.

    Args:
        llama: the language model.
        prompts: token ids, at least one a row.
        room: the most tokens that will be added to a row.
        hooks: an adapter bound to the batch.
    """

    def __init__(self, llama: Llama, prompts: list[list[int]], room: int, hooks: Sequence[BlockHooks] | None):
        self.llama, self.hooks = llama, hooks
        like = llama.tok_embeddings.weight
        self.start = longest = max(len(prompt) for prompt in prompts)
        self.tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=like.device)
        self.caches = [KVCache(llama.config, len(prompts), longest + room, like) for _ in llama.layers]
        positions = torch.arange(longest + room, device=like.device)
        self.padding: Tensor | None = None  # (B,)
        self.visible: Tensor | None = None  # (B, 1, 1, S)
        hide_first = hooks is not None and hooks[-1].hides_first
        if hide_first or any(len(prompt) < longest for prompt in prompts):
            self.padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=like.device)
            self.visible = (positions >= self.padding[:, None] + hide_first)[:, None, None]
            positions = (positions - self.padding[:, None]).clamp(min=0)
        self.turns = llama.turns(positions)  # (1 or B, 1, S, D/2)

    def read_prompts(self) -> Tensor:
        """Logits (B, V) of the first new token of each row."""
        hidden = self.llama.hidden(self.tokens, padding=self.padding, caches=self.caches, hooks=self.hooks)
        return self.llama.logits(hidden[:, -1]).float()

    def read(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of the token after ``tokens`` (B,)."""
        slot = self.caches[0].length
        mask = None if self.visible is None else self.visible[..., : slot + 1]
        turns = self.turns[:, :, slot : slot + 1]
        hidden = self.llama.blocks(tokens[:, None], turns, mask, self.caches, self.hooks)
        return self.llama.logits(hidden[:, -1]).float()

    def select(self, rows: Tensor) -> None:
        """Go on with ``rows`` (R,) of the batch, in this order, repeated or dropped."""
        for cache in self.caches:
            cache.select(rows)
        if self.visible is not None:
            self.visible, self.turns = self.visible[rows], self.turns[rows]
        if self.hooks is not None:
            self.hooks = [hooks.select(rows) for hooks in self.hooks]

    def reorder(self, rows: Tensor) -> None:
        """Go on with ``rows`` (B,) of the batch, each of which has the prompt of the row that it replaces."""
        for cache in self.caches:
            cache.reorder(rows, self.start)


class Ending:
    """When an answer ends: at an end token, at a stop text, after ``max_new_tokens``, or where the context is full.

    Raises:
        UserError: there are stop texts, but no ``decode`` to find them with.
    """

    def __init__(
        self,
        config: LlamaConfig,
        prompts: list[list[int]],
        eos_id: int | Sequence[int],
        decode: Callable[[list[int]], str] | None,
        settings: GenerationSettings,
    ):
        if settings.stop and decode is None:
            raise UserError("stop texts are found in text: give decode=, such as the tokenizer's")
        self.tokens = frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
        self.limits = [min(settings.max_new_tokens, config.max_length - len(prompt)) for prompt in prompts]
        self.text = AnswerText(decode, settings.stop) if settings.stop else None

    def reached(self, row: int, ids: list[int]) -> bool:
        """Whether the answer ``ids`` of prompt ``row`` ends after its last token, which is no end token."""
        return len(ids) >= self.limits[row] or (self.text is not None and self.text.ended(ids))


def check_prompts(config: LlamaConfig, prompts: list[list[int]]) -> None:
    """Refuse prompts that are empty or fill the model's context.

    Raises:
        UserError: names the first of them by its row.
    """
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"row {row}: the prompt is empty; it needs at least the BOS token")
        if len(prompt) >= config.max_length:
            raise UserError(
                f"row {row}: a prompt of {len(prompt)} tokens leaves no room in a model of {config.max_length}: "
                "shorten the input"
            )
