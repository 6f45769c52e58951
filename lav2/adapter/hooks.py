"""An adapter's share of one forward pass: how its parts enter the frozen blocks (V2 paper, sec 4)."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lav2.adapter.prompts import gated, prompt_attention
from lav2.adapter.tuning import NormTuning
from lav2.data.slots import IMAGE, MODALITY
from lav2.errors import UserError
from lav2.llama import BlockHooks
from lav2.llama.model import Attention, RMSNorm


@dataclass(frozen=True)
class Seen:
    """What one block is given of the images of a batch.

    Args:
        prompts: visual prompts (B, P, C).
        gate: early fusion: their own gate, (B or 1, H or 1, 1, 1), 0 for a row without an image. ``None`` is late
            fusion: the prompts are added to the block's adaptation prompts, and are 0 for a row without an image.
    """

    prompts: Tensor
    gate: Tensor | None


class AdapterHooks(BlockHooks):
    """One block's share of the adapter, for one forward pass.

    Args:
        tuning: the instruction group's part, a :class:`lav2.adapter.model.LayerTuning`.
        train: whether this pass gives that group gradients.
        seen: what the block reads of images, in a pass with images.
        outer: the same pass's hooks outside of the blocks.
        prompt_projection: see :class:`lav2.adapter.AdapterConfig`.
        keep: compute the prompts' keys and gated values, and scales times biases, once and keep them; only for
            generation, where the same hooks serve every step and no gradient flows.
    """

    def __init__(
        self,
        tuning: nn.Module,
        train: bool,
        seen: Seen | None,
        outer: "OuterHooks",
        prompt_projection: str,
        keep: bool,
    ):
        self.tuning, self.train, self.seen, self.outer = tuning, train, seen, outer
        self.prompt_projection, self.keep = prompt_projection, keep
        self.kept: list[tuple[Tensor, Tensor, None]] | None = None
        self.kept_route: Tensor | None = None
        tuned = tuning.linears.items() if keep else ()
        self.kept_affine = {name: linear.affine() for name, linear in tuned}

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        x = self.tuning.norms[name](norm, x, self.train) if name in self.tuning.norms else norm(x)
        if name != "attention_norm" or self.tuning.mixture is None:
            return x
        return self.tuning.mixture(x, self.route(x), self.train)

    def route(self, x: Tensor) -> Tensor:
        """The experts' weights (B, 1, 2) in front of this attention, by the modality token among the states ``x``."""
        if self.kept_route is not None:
            return self.kept_route
        modality = x[torch.arange(len(x), device=x.device), self.outer.modality_at]
        route = self.tuning.mixture.route(modality, self.train)[:, None]
        if self.keep:
            self.kept_route = route
        return route

    def linear(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        if (affine := self.kept_affine.get(name)) is not None:
            shift, scale = affine
            y = linear(x)
            return torch.addcmul(shift, y, scale, out=y)  # in fp32, whatever the dtype of y
        if name in self.tuning.linears:
            return self.tuning.linears[name](linear, x, self.train)
        return linear(x)

    def attend(self, attention: Attention, query: Tensor, output: Tensor) -> Tensor:
        prompts = self.kept
        if prompts is None:
            prompts = list(self.keys_and_values(attention))
            if self.keep:
                self.kept = prompts = [gated(*prompt, attention.num_heads) for prompt in prompts]
        for key, value, gate in prompts:
            output = output + prompt_attention(query, key, value, gate)
        return output

    def select(self, rows: Tensor) -> "AdapterHooks":
        chosen = copy(self)  # what was bound stays whole: its owner may use it again
        if self.seen is not None:
            chosen.seen = Seen(of_rows(self.seen.prompts, rows), of_rows(self.seen.gate, rows))
        if self.kept is not None:
            chosen.kept = [(of_rows(key, rows), of_rows(value, rows), None) for key, value, _ in self.kept]
        chosen.kept_route = of_rows(self.kept_route, rows)
        return chosen

    def prompts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(prompts (B or 1, P, C), gate) of each kind this block reads."""
        seen, own = self.seen, self.tuning.prompts
        if seen is not None and seen.gate is not None:
            yield seen.prompts, seen.gate
        if own is not None:
            prompt = own(self.train)
            late = seen is not None and seen.gate is None
            yield prompt + seen.prompts if late else prompt, own.gate(self.train)[None]

    def keys_and_values(self, attention: Attention) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(key, value, gate) of each kind of prompt, through the block's own W_k and W_v.

        Prompts pass no attention norm and get no rotary position.
        """
        for prompt, gate in self.prompts():
            prompt = prompt.to(attention.wk.weight.dtype)
            if self.prompt_projection == "tuned":
                key, value = self.linear("wk", attention.wk, prompt), self.linear("wv", attention.wv, prompt)
            else:
                key, value = attention.wk(prompt), attention.wv(prompt)
            yield attention.heads(key, attention.num_kv_heads), attention.heads(value, attention.num_kv_heads), gate


def of_rows(x: Tensor | None, rows: Tensor) -> Tensor | None:
    """``rows`` of ``x`` (B, …); a batch of one serves all rows as it is."""
    return x if x is None or len(x) == 1 else x[rows]


class OuterHooks(BlockHooks):
    """The adapter's share outside of the blocks: the final norm and, for image tokens, the embedding.

    Args:
        norm_tuning: the final norm's, if it is tuned.
        train: whether this pass gives the instruction group gradients.
        modality: with image tokens the modality token's embeddings (2, C): without an image, with one.
        image_tokens: (B, P, C) of a pass with images; a row without :data:`IMAGE` slots leaves its own unread.
    """

    def __init__(
        self, norm_tuning: NormTuning | None, train: bool, modality: Tensor | None, image_tokens: Tensor | None
    ):
        self.norm_tuning, self.train = norm_tuning, train
        self.modality, self.image_tokens = modality, image_tokens
        self.hides_first = modality is not None
        self.modality_at: Tensor | None = None  # each row's place of the modality token, once it has been embedded

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        return norm(x) if self.norm_tuning is None else self.norm_tuning(norm, x, self.train)

    def embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        if self.modality is None or self.modality_at is not None:  # a later step of generation has text alone
            return embedding(tokens)
        first, slots = tokens == MODALITY, tokens == IMAGE
        if not first.any(1).all():
            raise UserError(
                "a model that reads images as tokens needs a modality token in every row: begin the tokens with "
                "lav2.data.slots.image_prefix(…)"
            )
        self.modality_at = first.int().argmax(1)
        has_image = slots.any(1)
        x = embedding(tokens.clamp(min=0))
        x = torch.where(first[..., None], self.modality.to(x.dtype)[has_image.long()][:, None], x)
        if self.image_tokens is None and not has_image.any():
            return x
        given = None if self.image_tokens is None else self.image_tokens[has_image].to(x.dtype)
        if given is None or int(slots.sum()) != given.shape[:2].numel():
            raise UserError(
                f"the tokens have {int(slots.sum())} places for image tokens in {int(has_image.sum())} rows; the "
                f"images give {0 if given is None else given.shape[1]} a row (adapter.visual_length)"
            )
        return x.masked_scatter(slots[..., None], given)
