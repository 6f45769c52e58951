"""Bias tuning of linear layers, LoRA, and unfrozen norms (V2 paper, sec 4.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lav2.adapter.ownership import used
from lav2.llama.kernels import TrainedScale, biased, biased_and_scaled, scaled
from lav2.llama.model import Linear, RMSNorm


class LowRank(nn.Module):
    """LoRA: the update ``scaling · B A`` of a linear layer's weight; ``B`` is zero at the start."""

    def __init__(self, linear: nn.Linear, rank: int, scaling: float):
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as nn.Linear draws its weights
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scaling = scaling

    def forward(self, y: Tensor, x: Tensor, train: bool) -> Tensor:
        """The layer's output ``y`` (…, out) on ``x`` (…, in), and what the update adds to it."""
        a, b = (used(parameter, train).to(x.dtype) for parameter in (self.a, self.b))
        hidden = F.linear(x, a).flatten(0, -2)
        return torch.addmm(y.flatten(0, -2), hidden, b.T, alpha=self.scaling).view_as(y)

    def update(self) -> Tensor:
        """ΔW (out, in)."""
        return self.scaling * self.b @ self.a


class LinearTuning(nn.Module):
    """A scale, one at the start, a bias, zero at the start, and a low-rank update around a frozen linear layer (Eq. 1).

    ``scale="output"`` is the paper's ``y = s · (W x + b)``; ``"input"`` is ``y = W (s · x) + b``, as in the authors'
    65B chat code. Both act in fp32 whatever the dtype of ``x``: bf16 would round a scale of 1.002 to 1. With ``lora``
    W stands for ``W + ΔW``.
    """

    def __init__(self, linear: nn.Linear, bias: bool, scale: str, lora: LowRank | None = None):
        super().__init__()
        self.scale_side = scale
        scale_size = {"output": linear.out_features, "input": linear.in_features}.get(scale)
        self.scale = nn.Parameter(torch.ones(scale_size)) if scale_size else None
        self.bias = nn.Parameter(torch.zeros(linear.out_features)) if bias else None
        self.lora = lora

    def forward(self, linear: nn.Linear, x: Tensor, train: bool = True) -> Tensor:
        """The tuned linear layer on ``x`` (…, in) → (…, out); with ``train=False`` nothing here gets a gradient."""
        scale = None if self.scale is None else used(self.scale, train)
        bias = None if self.bias is None else used(self.bias, train)
        x = scaled(x, scale) if self.scale_side == "input" else x
        y = linear(x)
        if self.lora is not None:
            y = self.lora(y, x, train)
        if self.scale_side == "output":
            if bias is None:
                return scaled(y, scale)
            trains = scale.requires_grad and torch.is_grad_enabled()
            return (TrainedScale.apply if trains else biased_and_scaled)(y, bias, scale)
        return y if bias is None else biased(y, bias)

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(s · b, s) in fp32 where this is all of it, ``y = s · W x + s · b``; elsewhere ``None``."""
        if self.scale_side != "output" or self.bias is None or self.lora is not None:
            return None
        scale = self.scale.detach().float()
        return scale * self.bias.float(), scale

    @torch.no_grad()
    def fold(self, linear: nn.Linear) -> nn.Linear:
        """One plain linear layer with a bias that computes the same."""
        folded = Linear(linear.in_features, linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
        weight, bias = linear.weight.float(), torch.zeros(linear.out_features, device=linear.weight.device)
        if linear.bias is not None:  # of an adapter that has been folded before
            bias = bias + linear.bias
        if self.lora is not None:
            weight = weight + self.lora.update()
        if self.bias is not None:
            bias = bias + self.bias
        if self.scale_side == "output":
            weight, bias = self.scale[:, None] * weight, self.scale * bias
        elif self.scale_side == "input":
            weight = weight * self.scale
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
        return folded.requires_grad_(False)


class NormTuning(nn.Module):
    """A trainable copy of a frozen RMSNorm's weight."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().float().clone())

    def forward(self, norm: RMSNorm, x: Tensor, train: bool = True) -> Tensor:
        """``norm`` with this weight in place of its own, on ``x`` (…, C)."""
        return norm(x, used(self.weight, train))
