"""Activation checkpointing changes nothing but the memory."""

import pytest
import torch

from lav2.adapter import adapt
from lav2.training.recomputation import recompute_blocks
from tests.conftest import small_adapter

METHODS = {
    "v2": {},
    "lora": {"lora": {"rank": 2}},
    "late fusion": {"fusion": "late", "visual_layers": 0, "visual_length": 5, "ownership": "shared"},
    "input scale": {"scale": "input", "norms": "none"},
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_losses_and_gradients_are_the_same(llama, tokens, features, changes):
    model = adapt(llama, small_adapter(**changes), feature_width=16)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.adapter.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)

    def step():
        """One joint step, with what autograd keeps for it."""
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(tokens, features, "caption").logsumexp(-1).sum() + model(tokens, None, "instruction").sum()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), gradients, sum(kept.values())

    loss, gradients, kept = step()
    recompute_blocks(llama)
    again, same, less = step()
    assert torch.equal(loss, again) and gradients.keys() == same.keys()
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert less < kept / 2
    with torch.no_grad():
        assert torch.isfinite(model(tokens)).all()
