"""Scaled dot-product attention, with ways to train on a CPU that are faster than torch's own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 64  # keys, up to which the three steps of attention, written out, train faster than the kernel that joins them


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """``softmax(q kᵀ / √D) v``: (B, H, T, D) and twice (B, G, S, D) with G dividing H → (B, H, T, D).

    Args:
        mask: what each query may see, booleans that broadcast to (B, H, T, S); ``None`` with ``causal`` for the past.
    """
    if trains_on_cpu(query, key, value):
        if key.shape[2] <= FEW and key.shape[1] == query.shape[1] and mask is None and not causal:
            return written_out(query, key, value)
        if query.dtype == torch.bfloat16:
            return BFloat16OnCpu.apply(query, key, value, mask, causal)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def trains_on_cpu(*tensors: Tensor) -> bool:
    real = type(tensors[0]) is Tensor  # a plan's fake tensors are on no device, and stand for a GPU's
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return real and trains and tensors[0].device.type == "cpu"


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """:func:`attention` of all queries over all keys, H = G, with the softmax in fp32 at least.

    In bf16 the logits are rounded before it, as where transformers writes attention out; the kernel rounds none.
    """
    logits = query @ (key * query.shape[-1] ** -0.5).transpose(-1, -2)
    softmax = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return softmax.to(value.dtype) @ value


class BFloat16OnCpu(torch.autograd.Function):
    """The same values, and gradients computed in fp32, many times as fast as torch does it in bf16 on a CPU.

    The kernels are those behind :func:`torch.nn.functional.scaled_dot_product_attention`. They are called by name,
    because it would run the forward pass once more in fp32, for a backward pass that needs of it no more than the bf16
    one has left: the output, and the logarithm of each softmax's denominator, which is in fp32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        mask = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, denominator = kernel(query, key, value, 0.0, causal, attn_mask=mask)
        ctx.save_for_backward(query, key, value, output, denominator, mask)
        ctx.causal = causal
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        *given, denominator, mask = ctx.saved_tensors
        mask = None if mask is None else mask.float()
        wide = [x.float() for x in (slope, *given)]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = kernel(*wide, denominator, 0.0, ctx.causal, attn_mask=mask)
        return *(gradient.to(slope.dtype) for gradient in found), None, None
