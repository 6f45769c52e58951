"""Zero-initialised attention over prompts (V1 paper, sec 3.2; V2 paper, sec 3 and 4.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lav2.adapter.ownership import used


class Gate(nn.Module):
    """How far the prompts' answer enters a layer: 0 at the start, so that training begins from the frozen model.

    One gate per head, or one for all (``per_head=False``, V1's first release), through tanh unless ``tanh=False``.
    """

    def __init__(self, num_heads: int, per_head: bool = True, tanh: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads if per_head else 1))
        self.tanh = tanh

    def forward(self, train: bool = True) -> Tensor:
        """Factors (H or 1, 1, 1) for heads (B, H, T, D); with ``train=False`` the gate gets no gradient."""
        weight = used(self.weight, train)
        return (weight.tanh() if self.tanh else weight)[:, None, None]


class AdaptationPrompts(nn.Module):
    """The learned prompts of one layer, (P, C), drawn from N(0, 1) as in the authors' code, and their gate."""

    def __init__(self, length: int, hidden_size: int, gate: Gate):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(length, hidden_size))
        self.gate = gate


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
    """What the words' queries read from the prompts, times the gate: ``g · softmax(q kᵀ / √D) v``.

    The softmax is of its own, apart from the words'; prompts carry no rotary position, and every position sees all of
    them.

    Args:
        query: (B, H, T, D).
        key, value: (B or 1, G, P, D) with G dividing H.
        gate: (H or 1, 1, 1).

    Returns:
        (B, H, T, D), to be added to the heads' output before ``wo``.
    """
    key, value = (x.expand(query.shape[0], -1, -1, -1) for x in (key, value))
    answer = F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])
    return gate.to(answer.dtype) * answer
