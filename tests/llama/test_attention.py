"""Attention in bf16 on a CPU: torch's values, and gradients as near to the exact ones as torch's own."""

import pytest
import torch
import torch.nn.functional as F

from lav2.llama.attention import attention

SIZES = {"causal": (7, 7), "masked": (5, 9), "prompts": (6, 4)}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, True)], ids=str)
def test_values_are_torchs_and_gradients_no_worse(kind, wanted):
    draw = torch.Generator().manual_seed(0)
    length, keys = SIZES[kind]
    shapes = (2, 6, length, 8), (2, 2, keys, 8), (2, 2, keys, 8)
    inputs = [torch.randn(*shape, generator=draw).bfloat16() for shape in shapes]
    slope = torch.randn(2, 6, length, 8, generator=draw).bfloat16()
    mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length) if kind == "masked" else None
    causal = kind == "causal"

    def torchs(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=True)

    def run(function, dtype):
        leaves = [x.to(dtype).requires_grad_(needed) for x, needed in zip(inputs, wanted, strict=True)]
        output = function(*leaves)
        return output, torch.autograd.grad(output, [x for x in leaves if x.requires_grad], slope.to(dtype))

    output, found = run(lambda *leaves: attention(*leaves, mask, causal), torch.bfloat16)
    torch_output, peers = run(torchs, torch.bfloat16)
    _, exact = run(torchs, torch.float64)
    assert torch.equal(output, torch_output) and output.requires_grad
    for gradient, peer, truth in zip(found, peers, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - truth).norm() <= (peer - truth).norm() + 1e-3 * truth.norm()
        assert (gradient - truth).norm() < 5e-3 * truth.norm()
