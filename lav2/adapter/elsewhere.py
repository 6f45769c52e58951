"""Zero-initialised attention in other frozen transformers, such as ViT and RoBERTa (V1 paper: beyond LLaMA).

The prompts enter an attention from outside: what its queries read from them, through its own projections and times the
gate, a forward hook adds to what it returns. The backbone's code and weights stay as they are.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import Attention as TimmAttention
from torch import Tensor, nn

from lav2.adapter.prompts import AdaptationPrompts, Gate, prompt_attention
from lav2.errors import UserError

# Classes of transformers that are copies of one another; by name, because transformers is an extra
HUGGING_FACE = ("RobertaSelfAttention", "XLMRobertaSelfAttention", "BertSelfAttention")
Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projections:
    """The projections of one attention, whichever library wrote it.

    Args:
        num_heads: H.
        query, key, value: tokens (B, T, C) → heads side by side (B, T, H·D), with the attention's biases.
        output: heads side by side → their share of what the attention returns, without a bias.
        query_norm, key_norm: of heads (B, H, T, D).
    """

    num_heads: int
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Linear = nn.Identity()
    key_norm: Linear = nn.Identity()


def projections(attention: nn.Module) -> Projections | None:
    """The projections of torch's, timm's or RoBERTa's self-attention; ``None`` for any other module."""
    if isinstance(attention, nn.MultiheadAttention) and attention.batch_first and attention._qkv_same_embed_dim:
        linears = thirds(attention.in_proj_weight, attention.in_proj_bias)
        return Projections(attention.num_heads, *linears, partial(F.linear, weight=attention.out_proj.weight))
    if isinstance(attention, TimmAttention) and is_plain(attention):
        linears = thirds(attention.qkv.weight, attention.qkv.bias)
        output = partial(F.linear, weight=attention.proj.weight)
        return Projections(attention.num_heads, *linears, output, attention.q_norm, attention.k_norm)
    if type(attention).__name__ in HUGGING_FACE:
        linears = attention.query, attention.key, attention.value
        return Projections(attention.num_attention_heads, *linears, nn.Identity())  # W_o stands in the next module
    return None


def is_plain(attention: TimmAttention) -> bool:
    """Whether nothing stands between the heads and W_o; some of timm's attentions have a norm or a gate there."""
    norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
    return isinstance(norm, nn.Identity | None) and gate is None


def thirds(weight: Tensor, bias: Tensor | None) -> list[Linear]:
    """The linears of queries, keys and values that are stored as one."""
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [partial(F.linear, weight=w, bias=b) for w, b in zip(weight.chunk(3), biases, strict=True)]


class ZeroInitPrompts(AdaptationPrompts):
    """The prompts of one attention of another model, and the hook by which it reads them."""

    def hook(self, attention: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        """A forward hook: ``output`` of an attention of tokens ``args[0]`` (B, T, C), with the prompts' share added."""
        own = projections(attention)
        tokens = args[0]
        prompt = self().to(tokens.dtype)
        query, key, value = (
            linear(x).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
            for linear, x in ((own.query, tokens), (own.key, prompt), (own.value, prompt))
        )
        answer = prompt_attention(own.query_norm(query), own.key_norm(key), value, self.gate())
        share = own.output(answer.transpose(1, 2).flatten(2))
        return output + share if isinstance(output, Tensor) else (output[0] + share, *output[1:])


class ZeroInitBackbone(nn.Module):
    """A frozen transformer with zero-initialised attention over prompts; at the start its outputs are the backbone's.

    The hooks are there during a forward pass alone: outside of it the backbone is as it was, and may serve elsewhere.
    (Activation checkpointing, which runs blocks once more in the backward pass, therefore fails, with torch's own
    error.) It stays in evaluation mode, so that its features are the same in training.

    Args:
        backbone: an open_clip or timm vision transformer, or transformers' RoBERTa, XLM-R or BERT.
        prompt_length: P, prompts in each layer.
        prompt_layers: L, the number of last layers that have prompts; ``None`` is all. 0 is the frozen backbone.

    Raises:
        UserError: the backbone has no attention of a known kind, or fewer than ``prompt_layers``.
    """

    def __init__(self, backbone: nn.Module, prompt_length: int = 10, prompt_layers: int | None = None):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        found = attentions(backbone)
        if prompt_layers is not None and not 0 <= prompt_layers <= len(found):
            raise UserError(f"prompt_layers is {prompt_layers}; {type(backbone).__name__} has {len(found)} layers")
        self.names = found[len(found) - prompt_layers :] if prompt_layers is not None else found
        self.prompts = nn.ModuleList(
            ZeroInitPrompts(prompt_length, width(attention), Gate(projections(attention).num_heads))
            for attention in map(backbone.get_submodule, self.names)
        )

    def train(self, mode: bool = True) -> "ZeroInitBackbone":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the backbone returns for the same arguments."""
        with ExitStack() as hooks:
            for name, prompts in zip(self.names, self.prompts, strict=True):
                hooks.enter_context(self.backbone.get_submodule(name).register_forward_hook(prompts.hook))
            return self.backbone(*args, **kwargs)


def attentions(backbone: nn.Module) -> Sequence[str]:
    """The names of the self-attentions in the backbone's numbered blocks, first layer first.

    Raises:
        UserError: there is none of a known kind.
    """
    found = [
        name
        for name, module in backbone.named_modules()
        if projections(module) is not None and any(part.isdigit() for part in name.split("."))
    ]
    if not found:
        raise UserError(
            f"{type(backbone).__name__} has no attention that prompts can enter; known are torch's (batch first), as "
            "in open_clip's ViT, timm's, as in its vision_transformer models, and transformers' RoBERTa, XLM-R and BERT"
        )
    return found


def width(attention: nn.Module) -> int:
    """C, the width of the tokens that an attention of a known kind reads."""
    linear = getattr(attention, "query", getattr(attention, "qkv", None))
    return attention.embed_dim if linear is None else linear.in_features
