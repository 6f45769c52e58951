"""V1's language adapter is what peft calls ``adaption_prompt``: same weights, same logits, same gradients."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lav2
from lav2.adapter import adapt
from lav2.llama import Llama, LlamaConfig, Tokenizer, save_llama

peft = pytest.importorskip("peft", reason="needs peft (Python 3.11+)")
transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")

TOKENIZER = Path(lav2.__file__).parent / "demo" / "weights" / "llama" / "tokenizer.model"
# peft has V1's first release: one gate a layer, without tanh
V1 = {
    "visual_layers": 0,
    "prompt_layers": 3,
    "prompt_length": 5,
    "gate": "scalar",
    "gate_activation": "none",
    "bias": False,
    "scale": "none",
    "norms": "none",
    "ownership": "shared",
}


@pytest.fixture(params=[4, 2], ids=["all_heads", "grouped_heads"])
def pair(request, tmp_path):
    """Our adapted LLaMA and peft's, with the same base, prompts and gates, as if trained."""
    torch.manual_seed(0)
    shape = LlamaConfig(Tokenizer(TOKENIZER).vocab_size, 32, 4, 4, request.param, 48, max_length=64)
    llama = Llama(shape).reset_parameters(std=0.1)
    save_llama(llama, TOKENIZER, tmp_path, torch.float32)
    theirs = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32),
        peft.AdaptionPromptConfig(adapter_len=5, adapter_layers=3, task_type="CAUSAL_LM"),
    )
    ours = adapt(llama, V1)
    with torch.no_grad():
        for mine, prompt, gate in matched(ours, theirs):
            prompt.copy_(mine.prompt.normal_()[None])
            gate.copy_(mine.gate.weight.normal_())
    return ours, theirs


def matched(ours, theirs):
    """(our prompts, peft's prompt, peft's gate) of each of the last three layers."""
    layers = theirs.base_model.model.model.layers
    for index in (1, 2, 3):
        attention = layers[index].self_attn
        yield ours.adapter["instruction"].layers[index].prompts, attention.adaption_prompt, attention.adaption_gate


def test_logits_agree(pair, tokens):
    ours, theirs = pair
    with torch.no_grad(), theirs.disable_adapter():
        base = theirs(tokens).logits
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens)
    assert (expected - base).abs().max() > 0.01
    assert (found - expected).abs().max() < 1e-5


def test_gradients_agree(pair, tokens):
    """And the same parameters train, with as many values."""
    ours, theirs = pair
    for logits in (ours(tokens), theirs(tokens).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for mine, prompt, gate in matched(ours, theirs):
        for ours_grad, theirs_grad in ((mine.prompt.grad, prompt.grad[0]), (mine.gate.weight.grad, gate.grad)):
            assert theirs_grad.abs().max() > 0
            assert torch.allclose(ours_grad, theirs_grad, atol=1e-7, rtol=1e-4)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in pair]
    assert trained == [3 * (5 * 32 + 1)] * 2
