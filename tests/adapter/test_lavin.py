"""LaVIN: the mixture against its formula, what must hold for it, and what is refused."""

import pytest
import torch

from lav2.adapter import adapt
from lav2.adapter.hooks import OuterHooks
from lav2.adapter.mixture import MixtureOfModality
from lav2.data.slots import IMAGE, MODALITY, image_prefix
from lav2.errors import UserError
from tests.adapter.methods import LAVIN, lavin
from tests.adapter.test_family import published
from tests.conftest import small_adapter

WITH_IMAGE = [MODALITY, 1, 20, 21, IMAGE, IMAGE, IMAGE]
WITHOUT = [MODALITY, 1, 20, 21, 22, 23]


@pytest.fixture
def model(llama, encoder):
    return lavin(llama, encoder)


def rows(*texts):
    return torch.tensor([list(text) for text in texts])


def test_the_mixture_is_the_formula_written_out():
    """x' = x + w₀ B(A x) + w₁ D(A x) with grouped B and D, w = softmax(E x₀ / t); against torch's own convolutions."""
    mixture = MixtureOfModality(12, width=4, groups=2, temperature=3.0, dropout=0.5).eval()
    x = torch.randn(2, 5, 12)
    assert torch.equal(mixture(x, mixture.route(x[:, :1])), x)  # zero at the start
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(torch.randn_like(parameter))
    weights = torch.softmax((x[:, 0] @ mixture.router.weight.T + mixture.router.bias) / 3.0, -1)
    hidden = torch.nn.functional.conv1d(x.transpose(1, 2), mixture.down.weight[..., None], mixture.down.bias)
    expected = x.transpose(1, 2)
    for expert in range(2):
        up = mixture.up[expert].reshape(12, 2)[..., None]
        answer = torch.nn.functional.conv1d(hidden, up, mixture.bias[expert], groups=2)
        expected = expected + weights[:, expert, None, None] * answer
    assert torch.allclose(mixture(x, mixture.route(x[:, :1])), expected.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("routing", ["per_sample", "first_of_batch"])
def test_routing_weights_sum_to_one(llama, encoder, pixels, monkeypatch, routing):
    """In every layer and in every block of the image encoder; and each row's or image's are its own, or shared."""
    given, route = [], MixtureOfModality.route
    monkeypatch.setattr(MixtureOfModality, "route", lambda *arguments: given.append(route(*arguments)) or given[-1])
    with torch.no_grad():
        lavin(llama, encoder, routing=routing)(rows(WITH_IMAGE, WITH_IMAGE, WITH_IMAGE), pixels)
    of_image = (3, 1, 2) if routing == "per_sample" else (1, 37, 2)
    assert [tuple(weights.shape) for weights in given] == [of_image] * 6 + [(3, 2)] * 6
    for weights in given:
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1])) and (weights > 0).all()


def test_the_modality_token_is_invisible_to_all_others(model, pixels):
    """What another token reads of it is its routing alone: with the routes held, its embedding changes nothing."""
    mixtures = [layer.mixture for layer in model.adapter["instruction"].layers]
    with torch.no_grad():
        for mixture in mixtures:
            mixture.router.weight.zero_()
        before = model(rows(WITH_IMAGE), pixels[:1])
        model.adapter["instruction"].modality.add_(1)
        after = model(rows(WITH_IMAGE), pixels[:1])
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.equal(before[:, 0], after[:, 0])
    with torch.no_grad():
        mixtures[0].router.weight.normal_()
    assert not torch.equal(model(rows(WITH_IMAGE), pixels[:1])[:, 1:], after[:, 1:])


def test_an_images_result_does_not_depend_on_its_batch(llama, encoder, pixels):
    """LaVIN's own code fails this; ``first_of_batch`` is its behaviour."""
    text = rows(WITH_IMAGE, WITH_IMAGE, WITH_IMAGE)
    for routing, independent in (("per_sample", True), ("first_of_batch", False)):
        model = lavin(llama, encoder, routing=routing)
        with torch.no_grad():
            together, alone = model(text, pixels), model(text[:1], pixels[2:])
        assert torch.allclose(together[2], alone[0], atol=1e-4) == independent


def test_dropout_acts_in_training_alone(model, pixels):
    with torch.no_grad():
        assert torch.equal(model(rows(WITHOUT)), model(rows(WITHOUT)))
        model.train()
        assert not torch.equal(model(rows(WITHOUT)), model(rows(WITHOUT)))


@pytest.mark.parametrize(("size", "trainable"), [("7b", 3_781_296), ("13b", 5_390_080)])
def test_published_parameter_counts(size, trainable):
    assert published("lavin", size, 1024)["trainable"] == trainable


def test_the_prefix():
    class Tokenizer:
        def encode(self, text, bos):
            return [1] * bos + {"Image: ": [20], "Image: N/A": [20, 30]}[text]

    assert image_prefix(Tokenizer(), 3, True) == [MODALITY, 1, 20, IMAGE, IMAGE, IMAGE]
    assert image_prefix(Tokenizer(), 3, False) == [MODALITY, 1, 20, 30]


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ([1, 20, 21], None, "needs a modality token"),
        (WITH_IMAGE, None, "3 places for image tokens in 1 rows; the images give 0"),
        (WITH_IMAGE[:-1], 1, "2 places for image tokens in 1 rows; the images give 3"),
    ],
)
def test_tokens_that_do_not_fit_the_images_are_named(model, pixels, text, images, message):
    with pytest.raises(UserError, match=message):
        model(rows(text), None if images is None else pixels[:images])


def test_wrong_choices_are_named(llama, encoder):
    with pytest.raises(UserError, match="only adapter.fusion=tokens has"):
        adapt(llama, small_adapter(mixture={"width": 4}), 16)
    with pytest.raises(UserError, match="multiple of adapter.mixture.groups 3"):
        adapt(llama, small_adapter(**LAVIN | {"mixture": {"width": 4, "groups": 3}}), 16)
    with pytest.raises(UserError, match="give it as adapt"):
        adapt(llama, small_adapter(**LAVIN), encoder.width)(rows(WITH_IMAGE), torch.zeros(1, 3, 72, 72))


def test_the_first_token_alone_is_hidden():
    assert OuterHooks(None, True, torch.zeros(2, 4), None).hides_first
    assert not OuterHooks(None, True, None, None).hides_first
