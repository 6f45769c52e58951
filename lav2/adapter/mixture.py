"""Mixture-of-modality adaptation: two adapters and a router in front of an attention (LaVIN, arXiv 2305.15023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lav2.adapter.ownership import used

EXPERTS = 2  # one for text, one for text with an image; nothing but the router decides which is which


class MixtureOfModality(nn.Module):
    """``x + Σ_e w_e · B_e(dropout(A x))``: a shared projection down, one up for each expert, weighed by a router.

    The projections up are grouped: each group of the outputs reads its own part of the hidden units. They are zero at
    the start, so that training begins from the frozen model.

    Args:
        size: of the states, C.
        width: hidden units.
        groups: of the projections up.
        temperature: of the router's softmax.
        dropout: on the hidden units, in training.
    """

    def __init__(self, size: int, width: int, groups: int, temperature: float, dropout: float):
        super().__init__()
        self.down = nn.Linear(size, width)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.up = nn.Parameter(torch.zeros(EXPERTS, groups, size // groups, width // groups))
        self.bias = nn.Parameter(torch.zeros(EXPERTS, size))
        self.router = nn.Linear(size, EXPERTS)
        self.temperature, self.dropout = temperature, dropout

    def route(self, x: Tensor, train: bool = True) -> Tensor:
        """Weights of the experts, (…, 2), which sum to one, from the states ``x`` (…, C) that decide."""
        weight, bias = used(self.router.weight, train), used(self.router.bias, train)
        return torch.softmax(F.linear(x.float(), weight, bias) / self.temperature, dim=-1)

    def forward(self, x: Tensor, weights: Tensor, train: bool = True) -> Tensor:
        """Adapt the states ``x`` (B, T, C); ``weights`` (B or 1, T or 1, 2) are the router's."""
        down, up, bias = (used(p, train) for p in (self.down.weight, self.up, self.bias))
        hidden = F.linear(x.float(), down, used(self.down.bias, train))
        hidden = F.dropout(hidden, self.dropout, self.training).unflatten(-1, (self.up.shape[1], -1))
        answers = torch.einsum("btgi,egoi->btego", hidden, up).flatten(-2) + bias  # (B, T, 2, C)
        return (x + (weights[..., None] * answers).sum(-2)).to(x.dtype)
