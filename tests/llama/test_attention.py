"""Attention in bf16 on a CPU: torch's values, and gradients as near to the exact ones as torch's own."""

import pytest
import torch
import torch.nn.functional as F

from lav2.llama.attention import FEW, attention, written_out

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


@pytest.mark.parametrize("dtype, near", [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)], ids=str)
@pytest.mark.parametrize("keys", [1, 10, FEW])
def test_a_few_keys_have_torchs_values_and_gradients(dtype, near, keys):
    """As prompts have, whose keys and values serve a whole batch; written out it is not torch's kernel."""
    draw = torch.Generator().manual_seed(0)
    shapes = (3, 6, 20, 8), (1, 6, keys, 8), (1, 6, keys, 8)
    inputs = [torch.randn(*shape, generator=draw).to(dtype) for shape in shapes]
    slope = torch.randn(shapes[0], generator=draw)

    def run(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        output = function(leaves[0], *(x.expand(3, -1, -1, -1) for x in leaves[1:]))
        return [output, *torch.autograd.grad(output, leaves, slope.to(dtype))]

    found, exact = run(attention, dtype), run(F.scaled_dot_product_attention, torch.float64)
    for value, truth in zip(found, exact, strict=True):
        assert value.dtype == dtype and (value - truth).norm() <= near * truth.norm() + 1e-6  # 0 for one key
    assert torch.equal(found[0], written_out(inputs[0], *inputs[1:]))  # and this is what was asked
