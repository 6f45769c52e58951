"""The frozen base in 8 or 4 bits, by torchao (the extra ``quantize``), for adapters to be trained on top.

The linear layers of the blocks are rounded; embeddings, norms and the output head stay as they are. Gradients pass
through the rounded weights to the adapter, which is not rounded (QLoRA, arXiv 2305.14314, sec 3).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lav2.errors import UserError

QUANTIZATIONS = ("int8", "nf4")  # one scale a row; 4-bit NormalFloat, a scale for 64 weights, itself in 8 bits
NF4_BLOCK = 64


class Int8Product(torch.autograd.Function):
    """``x Wᵀ`` that keeps W in its 8 bits for the backward pass; torchao's own would keep a copy in x's precision."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.weight.dequantize(), None


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is a torchao ``Int8Tensor``."""

    def forward(self, x: Tensor) -> Tensor:
        return Int8Product.apply(x, self.weight)


def hold_int8(model: nn.Module) -> None:
    """Make the linear layers of ``model`` that are rounded :class:`Int8Linear`, on the meta device."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_quantized(name):
            parent, _, own = name.rpartition(".")
            linear = Int8Linear(module.in_features, module.out_features, bias=False, device="meta")
            setattr(model.get_submodule(parent), own, linear)


def is_quantized(name: str) -> bool:
    """Whether the weight ``name`` of a :class:`~lav2.llama.Llama` is one of those that are rounded."""
    return name.startswith("layers.") and "norm" not in name


def quantized(name: str, weight: Tensor, kind: str) -> Tensor:
    """``weight`` rounded to a ``kind`` of :data:`QUANTIZATIONS`.

    Raises:
        UserError: torchao is not installed, or the weight does not divide into blocks.
    """
    check_torchao(kind)
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        quantize_(linear, Int8WeightOnlyConfig())
        return linear.weight
    from torchao.quantization import NF4Tensor

    blocks, rest = divmod(weight.numel(), NF4_BLOCK)
    if rest:
        raise UserError(f"llama.quantize=nf4 needs blocks of {NF4_BLOCK} weights; {name} is {tuple(weight.shape)}")
    return NF4Tensor.from_tensor(weight, NF4_BLOCK, math.gcd(blocks, 256))


def check_torchao(kind: str) -> None:
    """Refuse to round where torchao is not installed."""
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise UserError(f'a base rounded to {kind} (quantize) needs torchao: pip install -e ".[quantize]"') from None


def stored_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor as it lies in memory; of a rounded one those of its parts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
