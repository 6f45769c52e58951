"""Text from a language model: batched, cached, greedy or sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.model import BlockHooks, KVCache, Llama


@torch.inference_mode()
def generate(
    llama: Llama,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    hooks: Sequence[BlockHooks] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continue each prompt until EOS, ``max_new_tokens`` or the model's ``max_length``.

    Prompts of unequal length are padded on the left, so that one cache serves all rows; a greedy answer does not depend
    on the row's neighbours.

    Args:
        llama: the language model.
        prompts: token ids, each row with its BOS.
        max_new_tokens: the most tokens to add to a row.
        eos_id: the token that ends a row; it is not returned.
        hooks: an adapter bound to its visual features (:meth:`lav2.adapter.AdaptedLlama.bind`), one row of features a
            prompt.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn from the softmax at this temperature.
        top_p: draw only among the likeliest tokens that together hold this probability.
        seed: of the draws.

    Returns:
        The new token ids of each row.

    Raises:
        UserError: a prompt is empty or leaves no room within ``max_length``.
    """
    config, device = llama.config, llama.tok_embeddings.weight.device
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise UserError("a prompt is empty: it needs at least the BOS token")
    if longest >= config.max_length:
        raise UserError(
            f"a prompt of {longest} tokens leaves no room in a model of {config.max_length}: shorten the input"
        )
    length = min(longest + max_new_tokens, config.max_length)

    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    tokens = torch.tensor([[eos_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    padding = padding if padding.any() else None
    like = llama.tok_embeddings.weight
    caches = [KVCache(config, len(prompts), length, like) for _ in llama.layers]
    generator = torch.Generator(device).manual_seed(seed)

    new: list[list[int]] = [[] for _ in prompts]
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(length - longest):
        hidden = llama.hidden(tokens, padding=padding, caches=caches, hooks=hooks)
        chosen = choose(llama.logits(hidden[:, -1]).float(), temperature, top_p, generator)  # (B,)
        running &= chosen != eos_id
        if not running.any():
            break
        for row in running.nonzero().flatten().tolist():
            new[row].append(int(chosen[row]))
        tokens = chosen[:, None]
    return new


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row (B,) from ``logits`` (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(-1, drawn)[:, 0]
