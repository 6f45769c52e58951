"""The frozen language model: LLaMA with Meta's weight names (V2 paper, sec 3).

Notation in shape comments: B batch, T query length, S key length, C hidden_size, H heads, G key-value heads,
D head_size, V vocabulary.

Nothing here knows about adapters. A block offers one seam, :class:`BlockHooks`, through which `lav2.adapter` adds
prompts, scales and biases; parallelism, checkpointing and precision are applied from outside as well.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lav2.llama.attention import attention
from lav2.llama.config import LlamaConfig, RopeScaling
from lav2.llama.kernels import is_bf16_row, rms_norm, row_product, swiglu


class BlockHooks:
    """Where an adapter may change a block. This base class changes nothing.

    An adapter gives one object per block, and one more for the embedding and the final norm; every method receives the
    frozen module it may wrap.
    """

    hides_first = False  # of the last object: whether each row's first token is seen by itself alone

    def embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """Embed ``tokens`` (B, T) as (B, T, C); only the last object is asked."""
        return embedding(tokens)

    def norm(self, name: str, norm: "RMSNorm", x: Tensor) -> Tensor:
        """Normalise ``x`` (B, T, C); ``name`` is ``attention_norm``, ``ffn_norm`` or, at the very end, ``norm``."""
        return norm(x)

    def linear(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        """Apply ``linear`` to ``x`` (B, T, in); ``name`` is one of ``wq wk wv wo w1 w2 w3``."""
        return linear(x)

    def attend(self, attention: "Attention", query: Tensor, output: Tensor) -> Tensor:
        """Change the heads' ``output`` (B, H, T, D) before ``wo``; ``query`` (B, H, T, D) carries rotary positions."""
        return output

    def select(self, rows: Tensor) -> "BlockHooks":
        """These hooks for a batch made of ``rows`` (R,) of the present one: generation drops and repeats rows."""
        return self


UNCHANGED = BlockHooks()


class Linear(nn.Linear):
    """A linear layer, for a single row of bf16 on a CPU by :func:`~lav2.llama.kernels.row_product`."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not is_bf16_row(x, weight):
            return F.linear(x, weight, bias)
        y = row_product(x, weight)
        return y if bias is None else y + bias


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed and weighted in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise ``x``; ``weight`` stands in for the module's own when given."""
        return rms_norm(x, self.weight if weight is None else weight, self.eps)


class KVCache:
    """Keys and values of the tokens seen so far, for one layer: a buffer of fixed size filled from the left."""

    def __init__(self, config: LlamaConfig, batch: int, length: int, like: Tensor):
        shape = (batch, config.num_kv_heads, length, config.head_size)
        self.key = like.new_empty(shape)
        self.value = like.new_empty(shape)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, G, T, D) and return all keys and values so far, (B, G, S, D)."""
        end = self.length + key.shape[2]
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Go on with ``rows`` (R,) of the batch, in this order, repeated or dropped."""
        self.key, self.value = self.key[rows], self.value[rows]

    def reorder(self, rows: Tensor, start: int) -> None:
        """Go on with ``rows`` (B,) of the batch, which are alike before slot ``start``, so that only the rest moves."""
        moved = slice(start, self.length)
        self.key[:, :, moved] = self.key[rows, :, moved]
        self.value[:, :, moved] = self.value[rows, :, moved]


def rotary(positions: Tensor, head_size: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """The rotary turns at ``positions`` (T,) or (B, T), as unit complex numbers (1 or B, 1, T, D/2)."""
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    frequencies = 1.0 / theta**exponents  # radians a token
    if scaling is not None:
        frequencies = scaled_frequencies(frequencies, scaling)
    angles = positions.float()[..., None] * frequencies
    angles = angles[:, None] if angles.dim() == 3 else angles[None, None]
    return torch.polar(torch.ones_like(angles), angles)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """``frequencies`` in radians a token, slowed as :class:`~lav2.llama.config.RopeScaling` says."""
    slowed = frequencies / scaling.factor
    if scaling.original_max_length is None:
        return slowed
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_max_length * frequencies / (2 * math.pi)
    return slowed.lerp(frequencies, ((turns - low) / (high - low)).clamp(0, 1))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (x0, x1), (x2, x3) … of each head of ``x`` (B, H, T, D), as complex numbers: Meta's layout."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, H, T, D/2)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped keys and values."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        kv_size = config.num_kv_heads * config.head_size
        self.wq = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.wk = Linear(config.hidden_size, kv_size, bias=False)
        self.wv = Linear(config.hidden_size, kv_size, bias=False)
        self.wo = Linear(config.hidden_size, config.hidden_size, bias=False)

    def heads(self, x: Tensor, count: int) -> Tensor:
        """(B, T, count · D) → (B, count, T, D)."""
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def forward(self, x: Tensor, turns, mask: Tensor | None, cache: KVCache | None, hooks: BlockHooks) -> Tensor:
        query = self.heads(hooks.linear("wq", self.wq, x), self.num_heads)
        key = self.heads(hooks.linear("wk", self.wk, x), self.num_kv_heads)
        value = self.heads(hooks.linear("wv", self.wv, x), self.num_kv_heads)
        query, key = rotate(query, turns), rotate(key, turns)
        if cache is not None:
            key, value = cache.append(key, value)
        output = attention(query, key, value, mask, causal=mask is None and query.shape[2] > 1)
        output = hooks.attend(self, query, output)
        return hooks.linear("wo", self.wo, output.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) · w3 x)``."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor, hooks: BlockHooks) -> Tensor:
        gated = swiglu(hooks.linear("w1", self.w1, x), hooks.linear("w3", self.w3, x))
        return hooks.linear("w2", self.w2, gated)


class Block(nn.Module):
    """One transformer block, pre-norm: attention, then feed-forward, each on the residual stream.

    A call takes one batch or several, each as the arguments of :meth:`transform`, and gives the states of each. A block
    whose weights are shared out among processes is gathered once a call.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, *batches: tuple) -> list[Tensor]:
        return [self.transform(*batch) for batch in batches]

    def transform(
        self, x: Tensor, turns, mask=None, cache: KVCache | None = None, hooks: BlockHooks = UNCHANGED
    ) -> Tensor:
        """States (B, T, C) of one batch → (B, T, C)."""
        x = x + self.attention(hooks.norm("attention_norm", self.attention_norm, x), turns, mask, cache, hooks)
        return x + self.feed_forward(hooks.norm("ffn_norm", self.ffn_norm, x), hooks)


class Llama(nn.Module):
    """LLaMA: tokens (B, T) → logits (B, T, V)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.fingerprint: str | None = None  # of the stored weights, where these are sharded or rounded coarsely
        embeddings = torch.empty(config.vocab_size, config.hidden_size)
        if not embeddings.is_meta:  # there it would do nothing but import torch's compiler: 2 seconds and 160 MB
            nn.init.normal_(embeddings)
        self.tok_embeddings = nn.Embedding.from_pretrained(embeddings, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.output = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, **context) -> Tensor:
        """Logits (B, T, V) of ``tokens`` (B, T); ``context`` as for :meth:`hidden`."""
        return self.logits(self.hidden(tokens, **context))

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head: (…, C) → (…, V)."""
        return row_product(hidden, self.head) if is_bf16_row(hidden, self.head) else F.linear(hidden, self.head)

    @property
    def head(self) -> Tensor:
        """The weight (V, C) of the output head, which may be that of the embeddings."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    def hidden(
        self,
        tokens: Tensor,
        padding: Tensor | None = None,
        caches: list[KVCache] | None = None,
        hooks: Sequence[BlockHooks] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) after the final norm.

        Args:
            tokens: (B, T) token ids; with ``caches`` the continuation of what the caches hold.
            padding: (B,) number of padding tokens at the *left* of each row; they are seen by no other token and
                take no position. Padding at the right needs no mention: attention is causal.
            caches: one :class:`KVCache` per layer, filled by this call.
            hooks: one :class:`BlockHooks` per layer and, last, one for the embedding and the final norm.
        """
        return self.blocks(*self.placed(tokens, padding, caches, hooks))

    def placed(
        self,
        tokens: Tensor,
        padding: Tensor | None = None,
        caches: list[KVCache] | None = None,
        hooks: Sequence[BlockHooks] | None = None,
    ) -> tuple:
        """The arguments of :meth:`blocks` for those of :meth:`hidden`: with each token's position and what it sees."""
        start = caches[0].length if caches else 0
        length = tokens.shape[1]
        positions = torch.arange(start, start + length, device=tokens.device)
        mask = attention_mask(positions, padding, bool(hooks) and hooks[-1].hides_first)
        if padding is not None:
            positions = (positions - padding[:, None]).clamp(min=0)
        return tokens, self.turns(positions), mask, caches, hooks

    def turns(self, positions: Tensor) -> Tensor:
        """The rotary turns of this model at ``positions`` (T,) or (B, T): (1 or B, 1, T, D/2)."""
        return rotary(positions, self.config.head_size, self.config.rope_theta, self.config.rope_scaling)

    def blocks(
        self,
        tokens: Tensor,
        turns: Tensor,
        mask: Tensor | None,
        caches: list[KVCache] | None = None,
        hooks: Sequence[BlockHooks] | None = None,
    ) -> Tensor:
        """What :meth:`hidden` gives, with rotary ``turns`` and attention ``mask`` (1 or B, 1, T, S) made elsewhere."""
        return self.blocks_of_each([(tokens, turns, mask, caches, hooks)])[0]

    def blocks_of_each(self, batches: Sequence[tuple]) -> list[Tensor]:
        """What :meth:`blocks` gives of each batch, its five arguments; every block is called once, with all batches."""
        count = len(self.layers)
        batches = [
            (tokens, turns, mask, caches or [None] * count, hooks or [UNCHANGED] * (count + 1))
            for tokens, turns, mask, caches, hooks in batches
        ]
        states = [hooks[-1].embed(self.tok_embeddings, tokens) for tokens, *_, hooks in batches]
        for index, layer in enumerate(self.layers):
            states = layer(
                *(
                    (x, turns, mask, caches[index], hooks[index])
                    for x, (_, turns, mask, caches, hooks) in zip(states, batches, strict=True)
                )
            )
        return [hooks[-1].norm("norm", self.norm, x) for x, (*_, hooks) in zip(states, batches, strict=True)]

    def reset_parameters(self, std: float = 0.02) -> "Llama":
        """Draw random weights for a model that is to be pre-trained: N(0, std²), residual outputs scaled by depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=std / (2 * self.config.num_layers) ** 0.5 if residual else std)
        return self


def attention_mask(positions: Tensor, padding: Tensor | None, hide_first: bool = False) -> Tensor | None:
    """What each query may see: (1 or B, 1, T, S) booleans, or None where plain causal attention says the same.

    ``positions`` (T,) are the slots of the queries among the S = last slot + 1 keys. A padding token sees itself, so
    that no row of the softmax is empty. With ``hide_first`` each row's first token is seen by itself alone.
    """
    plain = padding is None and not hide_first and (positions.numel() == 1 or positions[0] == 0)
    if plain:
        return None
    keys = torch.arange(int(positions[-1]) + 1, device=positions.device)
    visible = (keys <= positions[:, None])[None]  # (1, T, S)
    if padding is not None:
        visible = visible & (keys >= padding[:, None])[:, None] | (keys == positions[:, None])
    if hide_first:
        first = keys[None] == (0 if padding is None else padding[:, None])  # (1 or B, S)
        visible = visible & ~first[:, None] | (keys == positions[:, None])
    return visible[:, None]
