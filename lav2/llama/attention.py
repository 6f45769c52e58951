"""Scaled dot-product attention, with a backward pass that bf16 on a CPU need not wait for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """``softmax(q kᵀ / √D) v``: (B, H, T, D) and twice (B, G, S, D) with G dividing H → (B, H, T, D).

    Args:
        mask: what each query may see, booleans that broadcast to (B, H, T, S); ``None`` with ``causal`` for the past.
    """
    training = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    real = type(query) is Tensor  # a plan's fake tensors are on no device, and stand for a GPU's
    if training and real and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return BFloat16OnCpu.apply(query, key, value, mask, causal)
    return plain(query, key, value, mask, causal)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


class BFloat16OnCpu(torch.autograd.Function):
    """The same values, and gradients computed in fp32, many times as fast as torch does it in bf16 on a CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.causal = causal
        return plain(query, key, value, mask, causal)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mask = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        wide = [x.float().requires_grad_(needed) for x, needed in zip(inputs, wanted, strict=True)]
        with torch.enable_grad():
            output = plain(*wide, mask, ctx.causal)
        found = iter(torch.autograd.grad(output, [x for x in wide if x.requires_grad], slope.float()))
        return *(next(found).to(slope.dtype) if needed else None for needed in wanted), None, None
