"""An adapter's share of one forward pass: how its parts enter the frozen blocks (V2 paper, sec 4)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lav2.adapter.prompts import prompt_attention
from lav2.adapter.tuning import NormTuning
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
        prompt_projection: see :class:`lav2.adapter.AdapterConfig`.
        keep: compute the prompts' keys and values once and keep them; only for generation, where the same hooks serve
            every step and no gradient flows.
    """

    def __init__(self, tuning: nn.Module, train: bool, seen: Seen | None, prompt_projection: str, keep: bool):
        self.tuning, self.train, self.seen = tuning, train, seen
        self.prompt_projection, self.keep = prompt_projection, keep
        self.kept: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        if name not in self.tuning.norms:
            return norm(x)
        return self.tuning.norms[name](norm, x, self.train)

    def linear(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        if name not in self.tuning.linears:
            return linear(x)
        return self.tuning.linears[name](linear, x, self.train)

    def attend(self, attention: Attention, query: Tensor, output: Tensor) -> Tensor:
        prompts = self.kept or list(self.keys_and_values(attention))
        if self.keep:
            self.kept = prompts
        for key, value, gate in prompts:
            output = output + prompt_attention(query, key, value, gate)
        return output

    def prompts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(prompts (B or 1, P, C), gate) of each kind this block reads."""
        seen, own = self.seen, self.tuning.prompts
        if seen is not None and seen.gate is not None:
            yield seen.prompts, seen.gate
        if own is not None:
            prompt = own(self.train)
            yield (prompt if seen is None or seen.gate is not None else prompt + seen.prompts), own.gate(self.train)

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


class FinalNormHooks(BlockHooks):
    """The final norm's share of the adapter."""

    def __init__(self, tuning: NormTuning | None, train: bool):
        self.tuning, self.train = tuning, train

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        return norm(x) if self.tuning is None else self.tuning(norm, x, self.train)
