"""Zero-initialised attention over prompts (V1 paper, sec 3.2; V2 paper, sec 3 and 4.3)."""

import torch
from torch import Tensor, nn

from lav2.adapter.ownership import used
from lav2.llama.attention import attention


class Gate(nn.Module):
    """How far the prompts' answer enters a layer: 0 at the start, so that training begins from the frozen model.

    One gate per head, or one for all (``per_head=False``, V1's first release), through tanh unless ``tanh=False``.
    ``new_gate`` adds a factor of its own for all heads, 1 at the start (the authors' released LORA models).
    """

    def __init__(self, num_heads: int, per_head: bool = True, tanh: bool = True, new_gate: bool = False):
        super().__init__()
        gates = num_heads if per_head else 1
        self.weight = nn.Parameter(torch.zeros(gates))
        self.new_gate = nn.Parameter(torch.ones(1)) if new_gate else None
        self.tanh = tanh

    def forward(self, train: bool = True) -> Tensor:
        """Factors (H or 1, 1, 1) for heads (B, H, T, D); with ``train=False`` the gate gets no gradient."""
        weight = used(self.weight, train)
        factor = weight.tanh() if self.tanh else weight
        if self.new_gate is not None:
            factor = factor * used(self.new_gate, train)
        return factor[:, None, None]


class AdaptationPrompts(nn.Module):
    """The learned prompts of one layer, (P, C), drawn from N(0, 1) as in the authors' code, and their gate."""

    def __init__(self, length: int, hidden_size: int, gate: Gate):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(length, hidden_size))
        self.gate = gate

    def forward(self, train: bool = True) -> Tensor:
        """The prompts as a batch of one, (1, P, C); with ``train=False`` they get no gradient."""
        return used(self.prompt, train)[None]


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
    """What the words' queries read from the prompts, times the gate: ``softmax(q kᵀ / √D) (g · v)``.

    The softmax is of its own, apart from the words'; prompts carry no rotary position, and every position sees all of
    them. The gate is multiplied into the values, which are few, and not into what is read from them.

    Args:
        query: (B, H, T, D).
        key, value: (B or 1, G, P, D) with G dividing H.
        gate: (H or 1, 1, 1), or (B, H or 1, 1, 1) where rows differ; None where it stands in the values already.

    Returns:
        (B, H, T, D), to be added to the heads' output before ``wo``.
    """
    if gate is not None:
        key, value, _ = gated(key, value, gate, query.shape[1])
    key, value = (x.expand(query.shape[0], -1, -1, -1) for x in (key, value))
    return attention(query, key, value)


def gated(key: Tensor, value: Tensor, gate: Tensor, num_heads: int) -> tuple[Tensor, Tensor, None]:
    """Key, value and gate for :func:`prompt_attention` with the gate multiplied into the values, for every head.

    Args:
        key, value: (B or 1, G, P, D), which become (B or 1, num_heads, P, D).
        gate: as there.
    """
    key, value = (x.repeat_interleave(num_heads // x.shape[1], 1) for x in (key, value))
    return key, (gate * value.float()).to(value.dtype), None
