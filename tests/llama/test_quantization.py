"""The frozen base in 8 and 4 bits, and in fp16: close to the plain one, smaller, and known by the same fingerprint."""

import sys
from pathlib import Path

import pytest
import torch

from lav2.adapter import adapt
from lav2.errors import UserError
from lav2.llama import load_llama
from lav2.llama.loading import fingerprint
from lav2.llama.quantization import QUANTIZATIONS, is_quantized, quantized, stored_bytes

BASE = Path(__file__).parents[2] / "lav2" / "demo" / "weights" / "llama"
TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))


def gradients(llama):
    """Of an adapter on ``llama``, by the name of what they belong to, in one vector each for prompts and biases."""
    torch.manual_seed(0)
    model = adapt(llama, {"visual_layers": 0, "prompt_layers": 3, "prompt_length": 4})
    for layer in model.adapter["instruction"].layers[-3:]:
        layer.prompts.gate.weight.data.fill_(0.5)
    logits = model(TOKENS).float()
    logits.logsumexp(-1).mean().backward()
    found = {"prompt": [], "bias": []}
    for name, parameter in model.adapter.named_parameters():
        if name.endswith(tuple(found)):
            found[name.rpartition(".")[2]].append(parameter.grad.flatten())
    return logits.detach(), {kind: torch.cat(parts) for kind, parts in found.items()}


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def plain():
    llama = load_llama(BASE)
    return llama, *gradients(llama)


@pytest.mark.parametrize("quantize, bytes_a_weight, off, cosine", [("int8", 1.1, 0.03, 0.99), ("nf4", 0.6, 0.3, 0.8)])
def test_close_to_the_plain_base_in_a_fraction_of_its_memory(plain, quantize, bytes_a_weight, off, cosine):
    pytest.importorskip("torchao")
    llama = load_llama(BASE, quantize=quantize)
    rounded = [p for name, p in llama.layers.named_parameters() if "norm" not in name]
    assert sum(map(stored_bytes, rounded)) < bytes_a_weight * sum(p.numel() for p in rounded)
    logits, found = gradients(llama)
    assert 0 < relative(logits, plain[1]) < off
    assert all(torch.cosine_similarity(found[kind], plain[2][kind], 0) > cosine for kind in found)
    assert fingerprint(llama) == fingerprint(plain[0])


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_the_gradient_is_that_of_the_rounded_weights(quantize):
    """Nothing else is rounded than the weights: a plain base with the rounded weights gives the same gradients."""
    pytest.importorskip("torchao")
    llama, same = load_llama(BASE, quantize=quantize), load_llama(BASE)
    for name, parameter in same.named_parameters():
        if is_quantized(name):
            stored = llama.get_parameter(name)
            parameter.data.copy_(stored.dequantize() if quantize == "int8" else stored.get_original_weight())
    one, other = gradients(llama), gradients(same)
    assert relative(one[0], other[0]) < 1e-5
    assert all(relative(one[1][kind], other[1][kind]) < 1e-4 for kind in one[1])


def test_int8_keeps_no_wide_copy_for_the_backward_pass():
    pytest.importorskip("torchao")
    llama = load_llama(BASE, quantize="int8")
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(t.shape), t)[1], lambda t: t):
        llama.layers[0].feed_forward.w1(torch.randn(2, llama.config.hidden_size, requires_grad=True))
    assert shapes == []


def test_fp16_is_close_and_known(plain):
    llama = load_llama(BASE, torch.float16)
    logits, found = gradients(llama)
    assert relative(logits, plain[1]) < 5e-3 and all(relative(found[kind], plain[2][kind]) < 2e-2 for kind in found)
    assert fingerprint(llama) == fingerprint(plain[0])


def test_without_torchao_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r'needs torchao: pip install -e "\.\[quantize\]"'):
        quantized("layers.0.attention.wq.weight", torch.zeros(4, 4), "int8")


def test_a_weight_without_blocks_is_one_line():
    pytest.importorskip("torchao")
    with pytest.raises(UserError, match=r"blocks of 64 weights; wq is \(3, 5\)"):
        quantized("wq", torch.zeros(3, 5), "nf4")
