"""LaVIN: mixture-of-modality adapters against their formulas, and what must hold for them."""

from pathlib import Path

import pytest
import torch

import lav2
from lav2.adapter import adapt, load_adapter, owned, save_adapter
from lav2.adapter.hooks import OuterHooks
from lav2.adapter.mixture import MixtureOfModality
from lav2.data.slots import IMAGE, MODALITY, image_prefix
from lav2.errors import UserError
from lav2.llama.generation import generate
from lav2.vision import VisionEncoder
from tests.adapter.test_family import published
from tests.conftest import small_adapter

LAVIN = {
    "fusion": "tokens",
    "visual_layers": 0,
    "visual_length": 3,
    "prompt_layers": 0,
    "prompt_length": 0,
    "bias": False,
    "scale": "none",
    "norms": "none",
    "ownership": "shared",
    "projector": {"kind": "mlp", "width": 8},
    "mixture": {"width": 4, "groups": 2, "temperature": 2.0, "vision_blocks": 6, "vision_width": 96},
}
WITH_IMAGE = [MODALITY, 1, 20, 21, IMAGE, IMAGE, IMAGE]
WITHOUT = [MODALITY, 1, 20, 21, 22, 23]


@pytest.fixture(scope="module")
def encoder():
    weights = Path(lav2.__file__).parent / "demo" / "weights" / "vision.safetensors"
    return VisionEncoder("lav2-tiny", weights, tokens="class_tokens", layers=[2, 4, 6], projected=False)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 72, 72, generator=torch.Generator().manual_seed(4))


def lavin(llama, encoder, **mixture):
    """As if it had been trained."""
    changes = LAVIN | {"mixture": LAVIN["mixture"] | mixture}
    model = adapt(llama, small_adapter(**changes), encoder.width, encoder).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


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


def test_routing_weights_sum_to_one(model):
    weights = model.adapter["instruction"].layers[0].mixture.route(torch.randn(7, 32))
    assert weights.shape == (7, 2) and torch.allclose(weights.sum(-1), torch.ones(7)) and (weights > 0).all()


def test_text_starts_from_the_frozen_model(llama, encoder):
    """At the start the adapters change nothing, and the modality token, which nobody sees, only shifts positions."""
    model = adapt(llama, small_adapter(**LAVIN), encoder.width, encoder)
    with torch.no_grad():
        assert torch.allclose(model(rows(WITHOUT))[:, 1:], llama(rows(WITHOUT[1:])), atol=1e-4)


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


def test_rows_with_and_without_an_image_share_a_batch(model, pixels):
    text = rows(WITH_IMAGE, [*WITHOUT, 9])
    with torch.no_grad():
        mixed = model(text, pixels[:2], has_image=torch.tensor([True, False]))
        assert torch.allclose(mixed[0], model(text[:1], pixels[:1])[0], atol=1e-4)
        assert torch.allclose(mixed[1], model(text[1:])[0], atol=1e-4)


def test_cached_generation_equals_the_full_forward(model, pixels):
    """Invariant 5, where LaVIN's own decoding is off by one position: unequal prompts, with and without an image."""
    prompts = [[*WITH_IMAGE, 5, 9, 30, 7], [*WITHOUT, 44]]
    hooks = model.bind(pixels[:2], has_image=torch.tensor([True, False]), keep=True)
    together = generate(model.llama, prompts, hooks=hooks, max_new_tokens=12, eos_id=2)
    for row, prompt in enumerate(prompts):
        visual = pixels[:1] if row == 0 else None
        full = list(prompt)
        with torch.no_grad():
            while len(full) < len(prompt) + 12 and full[-1] != 2:
                full.append(int(model(rows(full), visual)[0, -1].argmax()))
        assert together[row] == [token for token in full[len(prompt) :] if token != 2]


def test_everything_trains_and_the_encoder_stays(model, pixels):
    """Invariants 2 and 3, with shared ownership: one image batch and one text batch reach every parameter."""
    loss = model(rows(WITH_IMAGE), pixels[:1], "caption").square().mean()
    (loss + model(rows(WITHOUT), None, "instruction").square().mean()).backward()
    trainable = {**owned(model, "caption"), **owned(model, "instruction")}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable.keys()
    assert all(p.grad is not None and p.grad.any() for p in trainable.values())


def test_dropout_acts_in_training_alone(model, pixels):
    with torch.no_grad():
        assert torch.equal(model(rows(WITHOUT)), model(rows(WITHOUT)))
        model.train()
        assert not torch.equal(model(rows(WITHOUT)), model(rows(WITHOUT)))


def test_save_and_load_gives_the_same_logits(model, encoder, pixels, tmp_path):
    save_adapter(tmp_path, model)
    loaded = load_adapter(tmp_path, model.llama, encoder)
    assert torch.equal(loaded(rows(WITH_IMAGE), pixels[:1]), model(rows(WITH_IMAGE), pixels[:1]))


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
