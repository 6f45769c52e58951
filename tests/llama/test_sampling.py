"""What is left to draw from, against transformers' logits processors, and the draws themselves."""

import pytest
import torch

from lav2.llama.sampling import Sampler, draw, keep_likeliest, penalize, seen_tokens
from lav2.llama.settings import GenerationSettings


@pytest.fixture
def logits():
    return 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 80])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_top_k_and_top_p_equal_transformers(logits, top_k, top_p):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    expected = logits
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(keep_likeliest(logits, top_k, top_p), expected)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_the_repetition_penalty_equals_transformers(logits, penalty):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    prompts = torch.randint(0, 50, (20, 9), generator=torch.Generator().manual_seed(1))
    expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(prompts, logits)
    assert torch.equal(penalize(logits, seen_tokens(prompts.tolist(), torch.empty(50, 3)), penalty), expected)


def test_draws_follow_the_probabilities():
    """Evenly spread numbers meet each token as often as its probability says, to one number."""
    probabilities = torch.tensor([0.1, 0.0, 0.35, 0.25, 0.3, 0.0])
    numbers = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(probabilities.expand(1000, -1), numbers)
    assert (drawn.bincount(minlength=6) - 1000 * probabilities).abs().max() <= 1


def test_the_extreme_draws_meet_possible_tokens():
    probabilities = torch.rand(200, 3000, generator=torch.Generator().manual_seed(0)) ** 8
    probabilities[:, [0, -1]] = 0
    probabilities /= probabilities.sum(-1, keepdim=True)
    for extreme in (0.0, 1 - 2**-24):
        drawn = draw(probabilities, torch.full((200,), extreme))
        assert (probabilities.gather(1, drawn[:, None]) > 0).all()


def test_temperature_sharpens_the_draws(logits):
    def share_of_the_likeliest(temperature):
        choose = Sampler(GenerationSettings(temperature=temperature), [[1]] * 20, range(20), 400, torch.empty(50, 3))
        drawn = torch.stack([choose(logits) for _ in range(400)])
        return (drawn == logits.argmax(-1)).float().mean(0)

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1).amax(-1)
        assert (share_of_the_likeliest(temperature) - expected).abs().max() < 0.1  # 4 standard errors at most
