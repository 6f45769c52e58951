"""The frozen encoder: which tokens, which layers, which pixels."""

import logging
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lav2.errors import UserError
from lav2.vision import VisionEncoder
from lav2.vision.encoder import vision_problems, warn_of_activation
from lav2.vision.towers import bare_tower, has_class_token, token_shape

NAME = "lav2-tiny"


@pytest.fixture(scope="module")
def clip():
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, load_weights=False).eval()
    logging.disable(logging.NOTSET)
    return model


@pytest.fixture(scope="module")
def weights(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("vision") / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8))


def test_the_projected_class_token_is_open_clips_image_feature(clip, weights, picture):
    encoder = VisionEncoder(NAME, weights, tokens="patches_and_class")
    pixels = encoder.preprocess(picture)[None]
    with torch.no_grad():
        assert torch.allclose(encoder(pixels)[:, 0], clip.encode_image(pixels), atol=1e-5)
    patches = VisionEncoder(NAME, weights)(pixels)
    assert torch.equal(patches, encoder(pixels)[:, 1:]) and encoder.num_tokens == patches.shape[1] + 1


def test_class_tokens_are_those_of_the_chosen_blocks(clip, weights, picture):
    encoder = VisionEncoder(NAME, weights, tokens="class_tokens", layers=[2, 4, 6], projected=False)
    pixels = encoder.preprocess(picture)[None]
    found = encoder(pixels)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _module, _input, output: seen.append(output[:, 0]))
        for block in clip.visual.transformer.resblocks
    ]
    with torch.no_grad():
        clip.visual(pixels)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(found, torch.stack([seen[1], seen[3], seen[5]], 1), atol=1e-5)
    assert (encoder.num_tokens, encoder.width) == tuple(found.shape[1:])
    projected = VisionEncoder(NAME, weights, tokens="class_tokens", layers=[2, 4, 6])
    with torch.no_grad():
        assert torch.allclose(projected(pixels)[:, 2], clip.encode_image(pixels), atol=1e-5)


def test_pixels(weights, picture):
    cropped = VisionEncoder(NAME, weights).preprocess(picture)
    flipped = VisionEncoder(NAME, weights, channel_order="BGR").preprocess(picture)
    swapped = Image.fromarray(np.array(picture)[:, :, ::-1])  # what OpenCV reads, taken for RGB: as the authors do
    assert torch.equal(flipped, VisionEncoder(NAME, weights).preprocess(swapped))
    assert not torch.allclose(flipped, cropped.flip(0), atol=0.1)  # the normalization is not swapped with it
    squashed = VisionEncoder(NAME, weights, resize="squash", normalization="imagenet").preprocess(picture)
    whole = torch.from_numpy(np.array(picture.resize((72, 72), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    expected = (whole - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    assert torch.allclose(squashed, expected, atol=1e-5)


def test_every_setting_that_changes_features_changes_the_fingerprint(weights):
    changes = [
        {},
        {"tokens": "patches_and_class"},
        {"tokens": "class_tokens", "layers": [6]},
        {"tokens": "class_tokens", "layers": [5, 6]},
        {"projected": False},
        {"channel_order": "BGR"},
        {"resize": "squash"},
        {"normalization": "imagenet"},
    ]
    prints = {VisionEncoder(NAME, weights, **change).fingerprint for change in changes}
    assert len(prints) == len(changes)


def test_a_resnets_tokens_are_its_last_map(tmp_path, picture):
    """Put through CLIP's attention pooling they give open_clip's image feature."""
    logging.disable(logging.WARNING)
    visual = open_clip.create_model("RN50", load_weights=False).visual.eval()
    logging.disable(logging.NOTSET)
    save_file({name: tensor.contiguous() for name, tensor in visual.state_dict().items()}, tmp_path / "rn.safetensors")
    encoder = VisionEncoder("RN50", tmp_path / "rn.safetensors", projected=False)
    pixels = encoder.preprocess(picture)[None]
    tokens = encoder(pixels)
    assert (encoder.num_tokens, encoder.width) == tuple(tokens.shape[1:]) == (49, 2048)
    with torch.no_grad():
        pooled = visual.attnpool(tokens.transpose(1, 2).unflatten(2, (7, 7)))
        assert torch.allclose(pooled, visual(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "before"),
    [
        ("ViT-L-14", (257, 1024), 1),
        ("ViT-B-16-SigLIP", (196, 768), 0),
        ("EVA02-B-16", (197, 768), 1),
        ("convnext_base_w", (64, 1024), 0),
        ("swin_base_patch4_window7_224", (49, 1024), 0),
        ("coca_ViT-B-32", (50, 768), 1),
    ],
)
def test_towers_of_every_kind(name, shape, before):
    """Sizes as their papers and open_clip's configs give them, without building weights."""
    assert token_shape(name) == shape and has_class_token(bare_tower(name)) == before


def test_openais_weights_need_quickgelu():
    with pytest.warns(UserWarning, match="vision.name=ViT-L-14-quickgelu"):
        warn_of_activation("ViT-L-14", Path("clip/openai.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_activation("ViT-L-14-quickgelu", Path("clip/openai.safetensors"))
        warn_of_activation("ViT-L-14", Path("clip/laion2b.safetensors"))


def test_a_torchscript_archive_is_not_run(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match="TorchScript archive"):
        VisionEncoder(NAME, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "RN50"}, "set it to false"),
        ({"name": "RN50", "projected": False, "tokens": "patches_and_class"}, "choose patches"),
        ({"name": "EVA02-B-16", "projected": False, "tokens": "class_tokens", "layers": [1]}, "choose patches"),
        ({"name": "hf-hub:someone/something"}, "no model"),
        ({"tokens": "class_tokens"}, "vision.layers is None"),
        ({"tokens": "class_tokens", "layers": [7]}, "1 to 6"),
        ({"layers": [1]}, "leave it null"),
        ({"resize": "pad"}, "crop, squash"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    settings = {
        "name": NAME,
        "tokens": "patches",
        "layers": None,
        "projected": True,
        "channel_order": "RGB",
        "resize": "crop",
        "normalization": "model",
    }
    found = vision_problems(settings | changes)
    assert len(found) == 1 and message in found[0]
