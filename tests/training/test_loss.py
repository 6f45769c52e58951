"""The training loss: its value and gradient are those of all logits at once, however few are there at a time."""

import pytest
import torch
import torch.nn.functional as F

from lav2.data.tokens import IGNORE
from lav2.llama import Llama, LlamaConfig
from lav2.llama.kernels import loss_and_slope
from lav2.training import loss
from lav2.training.loss import FrozenHeadLoss, response_loss


@pytest.fixture
def batch(tokens):
    labels = tokens.clone()
    labels[0, :4], labels[1, 6:] = IGNORE, IGNORE
    return {"tokens": tokens, "labels": labels}


def with_gradients(adapted, value):
    parameters = dict(adapted.adapter["instruction"].named_parameters())
    return value, dict(zip(parameters, torch.autograd.grad(value, parameters.values()), strict=True))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equals_all_logits_at_once(adapted, batch, rows, monkeypatch):
    monkeypatch.setattr(FrozenHeadLoss, "ELEMENTS", rows * adapted.llama.config.vocab_size)
    logits = adapted(batch["tokens"][:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(
        with_gradients(adapted, response_loss(adapted, batch, "instruction")), with_gradients(adapted, expected)
    )


def test_never_holds_more_logits_than_it_may(adapted, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(FrozenHeadLoss, "ELEMENTS", 4 * adapted.llama.config.vocab_size)
    monkeypatch.setattr(
        loss, "loss_and_slope", lambda logits, labels: seen.append(len(logits)) or loss_and_slope(logits, labels)
    )
    response_loss(adapted, batch, "instruction").backward()
    labelled = int((batch["labels"][:, 1:] != IGNORE).sum())
    assert max(seen) == 4 and sum(seen) == labelled


def test_a_divisor_is_not_rounded():
    """A mean over 257 tokens in bf16: 1/257 would be rounded by 0.2 %."""
    torch.manual_seed(0)
    llama = Llama(
        LlamaConfig(vocab_size=20, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=8)
    )
    llama = llama.bfloat16().requires_grad_(False)
    hidden, labels = torch.randn(257, 16).bfloat16().requires_grad_(), torch.randint(20, (257,))
    norms = []
    for divisor in (1, 257):
        total = FrozenHeadLoss.apply(hidden, labels, llama.head, torch.tensor(divisor))
        (gradient,) = torch.autograd.grad(total, hidden)
        norms.append(gradient.float().norm() * divisor)
    assert abs(norms[1] / norms[0] - 1) < 5e-4


def test_without_labels_is_zero_with_zero_gradients(adapted, batch):
    batch["labels"].fill_(IGNORE)
    value, gradients = with_gradients(adapted, response_loss(adapted, batch, "instruction"))
    assert value == 0 and all(not gradient.any() for gradient in gradients.values())
