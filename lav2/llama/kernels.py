"""What a block computes element by element, in one place so that :func:`fuse` can compile it.

Plain, each line of these functions is a pass over memory, and autograd keeps what each leaves. Compiled, a function is
one pass forward and one backward, and keeps what it was given. The values are those of the plain functions, up to
rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

fused = False


def fuse(on: bool = True) -> None:
    """From now on run these functions compiled, or plain. The compiler takes a minute, once on a machine."""
    global fused
    fused = on
    if on:
        import torch._dynamo  # slow, so only here

        torch._dynamo.config.recompile_limit = 64  # one for each combination of dtypes, gradients and single rows


def fusible(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = functools.cache(lambda: torch.compile(function, dynamic=True))  # the compiler is slow to import

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return (compiled() if fused else function)(*arguments)

    return run


@fusible
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / √(mean x² + eps) · weight`` over the last dimension, in fp32; the dtype of ``x``."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed.to(x.dtype) * weight.float()).to(x.dtype)  # bf16 times fp32 is fp32


@fusible
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) · up``."""
    return F.silu(gate) * up


@fusible
def biased(y: Tensor, bias: Tensor) -> Tensor:
    """``y + bias`` in fp32; the dtype of ``y``."""
    return (y + bias.float()).to(y.dtype)


@fusible
def scaled(y: Tensor, scale: Tensor) -> Tensor:
    """``s · y`` in fp32; the dtype of ``y``."""
    return (y * scale.float()).to(y.dtype)


@fusible
def biased_and_scaled(y: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """``s · (y + bias)`` in fp32; the dtype of ``y``."""
    return ((y + bias.float()) * scale.float()).to(y.dtype)


@fusible
def slopes(slope: Tensor, z: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of ``z = s · (y + b)`` those of ``y``, in its dtype, and of ``b`` and ``s``, in fp32."""
    wide = slope.float() * scale.float()
    rows = (-1, slope.shape[-1])
    of_scale = (slope.float() * z.float()).reshape(rows).sum(0) / scale.float()
    return wide.to(slope.dtype), wide.reshape(rows).sum(0), torch.where(scale == 0, 0.0, of_scale)


class TrainedScale(torch.autograd.Function):
    """:func:`biased_and_scaled` for training: it keeps its result, where autograd would keep ``y``.

    What follows a linear layer (SwiGLU, attention's values) keeps that result anyway, so that it takes no memory of its
    own; and ``y + b`` is the result divided by ``s``. The gradient of a scale that is exactly 0 counts as 0.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        z = biased_and_scaled(y, bias, scale)
        ctx.save_for_backward(z, scale)
        return z

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        z, scale = ctx.saved_tensors
        found = zip(slopes(slope, z, scale), ctx.needs_input_grad, strict=True)
        return tuple(gradient if wanted else None for gradient, wanted in found)


@fusible
def loss_and_slope(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of ``logits`` (N, V) at ``labels`` (N,), and its gradient, both in fp32."""
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    loss = -log_probabilities.gather(1, labels[:, None]).sum()
    classes = torch.arange(logits.shape[-1], device=labels.device)
    slope = log_probabilities.exp() - (classes == labels[:, None]).float()
    return loss, slope


def is_bf16_row(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`row_product` of ``x`` (…, in) and a plain ``weight`` (out, in) is the faster way."""
    if x.dtype is not torch.bfloat16 or x.numel() != x.shape[-1]:  # asked before every product
        return False
    plain = type(weight) in (Tensor, nn.Parameter)  # a rounded or sharded weight is another type
    bf16 = weight.dtype is torch.bfloat16 and x.device.type == "cpu"
    return plain and bf16 and not torch.is_grad_enabled()


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x Wᵀ`` of a single row ``x`` (…, in) as ``W x``, which reads the weight as it lies in memory: (…, out).

    In ``x Wᵀ`` oneDNN turns a bf16 weight over at each call, which costs more than the product itself.
    """
    return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)
