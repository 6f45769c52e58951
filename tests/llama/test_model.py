"""The frozen language model: its cache against its full forward pass, padding, sampling."""

import pytest
import torch

from lav2.errors import UserError
from lav2.llama import KVCache
from lav2.llama.generation import generate
from lav2.llama.loading import fingerprint


def test_cache_equals_full_forward(llama, tokens):
    """Invariant 5: prompt, then token by token."""
    caches = [KVCache(llama.config, len(tokens), tokens.shape[1], llama.tok_embeddings.weight) for _ in llama.layers]
    parts = [llama(tokens[:, :4], caches=caches)] + [llama(tokens[:, i : i + 1], caches=caches) for i in range(4, 9)]
    assert torch.allclose(torch.cat(parts, dim=1), llama(tokens), atol=1e-4)


def test_left_padding_changes_nothing(llama, tokens):
    """Invariant 5: a padded row gives the logits of the row alone, whatever stands in the padding."""
    padded = torch.cat((torch.full((3, 4), 49), tokens), dim=1)
    padding = torch.tensor([4, 4, 4])
    assert torch.allclose(llama(padded, padding=padding)[:, 4:], llama(tokens), atol=1e-4)


def test_sampling_is_seeded_and_respects_top_p(llama):
    def sample(seed, top_p=1.0):
        return generate(llama, [[1, 2, 3]] * 4, max_new_tokens=20, eos_id=49, temperature=1.5, top_p=top_p, seed=seed)

    assert sample(0) == sample(0) != sample(1)
    greedy = generate(llama, [[1, 2, 3]] * 4, max_new_tokens=20, eos_id=49)
    assert sample(0, top_p=1e-6) == greedy


def test_a_prompt_too_long_is_refused(llama):
    with pytest.raises(UserError, match="64"):
        generate(llama, [[1] * 64], max_new_tokens=1, eos_id=2)


def test_fingerprint_tells_weights_apart_and_ignores_the_dtype(llama):
    before = fingerprint(llama)
    llama.to(torch.bfloat16)
    assert fingerprint(llama) == before
    llama.layers[3].feed_forward.w2.weight[0, 0] += 1
    assert fingerprint(llama) != before
