"""The committed vision encoder: open_clip loads it strictly, and its tokens tell what held-out pictures show."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.demo.pretrain_vision import (
    CLASS_CLASSES,
    MODEL,
    PATCH_CLASSES,
    WEIGHTS,
    attribute_loss,
    class_labels,
    encode,
    patch_labels,
    train,
)
from lav2.demo.probe import encode_scenes, probe
from lav2.demo.world import COLORS, SHAPES, Item, Scene, Sign, sample_scenes
from lav2.vision import VisionEncoder


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return VisionEncoder(MODEL, WEIGHTS / "vision.safetensors", tokens="patches_and_class")


def test_the_file_is_small():
    assert (WEIGHTS / "vision.safetensors").stat().st_size < 2_000_000


def test_the_weights_load_strictly_into_open_clip():
    weights = load_file(WEIGHTS / "vision.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    visual = open_clip.create_model(MODEL).visual.eval()
    visual.load_state_dict(weights, strict=True)
    assert len(visual.transformer.resblocks) >= 6, "room for prompts and class tokens of several layers"


def test_training_reads_the_tokens_that_the_frozen_encoder_gives(encoder):
    pixels = torch.randn(2, 3, 72, 72)
    with torch.no_grad():
        tokens = encode(encoder.visual, pixels)
        assert tokens.shape == (2, 37, 96)
        torch.testing.assert_close(tokens, encoder(pixels))
        torch.testing.assert_close(tokens[:, 0], encoder.visual(pixels))


def test_tokens_tell_what_held_out_pictures_show(encoder):
    card = json.loads((WEIGHTS / "vision_card.json").read_text())
    held_out = sample_scenes(card["held_out_scenes"], card["seed"] + 1)[:300]
    accuracies = probe(encoder, sample_scenes(1200, seed=99, exclude=set(held_out)), held_out)
    for name in ("patch_color", "patch_shape", "patch_size", "patch_relation"):
        assert accuracies[name] >= 0.95, f"{name}: {accuracies}"
        assert accuracies[name] == pytest.approx(card["probe"][name], abs=0.03)


def test_an_untrained_encoder_does_not(tmp_path):
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).visual.state_dict(), tmp_path / "untrained.safetensors")
    untrained = VisionEncoder(MODEL, tmp_path / "untrained.safetensors", tokens="patches_and_class")
    accuracies = probe(untrained, sample_scenes(600, seed=99), sample_scenes(200, seed=98))
    assert accuracies["patch_shape"] < 0.6 and accuracies["patch_relation"] < 0.6


def test_encoding_does_not_depend_on_the_batch(encoder):
    scenes = sample_scenes(5, seed=7)
    torch.testing.assert_close(
        encode_scenes(encoder, scenes), encode_scenes(encoder, scenes, batch_size=1), atol=1e-4, rtol=1e-4
    )


def test_labels_say_what_lies_where():
    scene = Scene((Item("star", "blue", "small", 0, 0), Item("heart", "red", "large", 0, 2)), Sign("EXIT", 2, 0))
    patches = patch_labels(scene).view(6, 6, 6)
    star = [1 + SHAPES.index("star"), 1 + COLORS.index("blue"), 1, 3]
    heart = [1 + SHAPES.index("heart"), 1 + COLORS.index("red"), 2, 4]
    assert patches[1, 1].tolist() == [*star, 2, 2]
    assert patches[0, 5].tolist() == [*heart, 1, 6]
    assert patches[3, 3].tolist() == [0, 0, 0, 0, 4, 4]
    assert patches[5, 0].tolist() == [len(SHAPES) + 1, 0, 0, 0, 6, 1]
    shapes = class_labels(scene).view(len(SHAPES), 4)
    assert shapes[SHAPES.index("star")].tolist() == [*star[1:], 1]
    assert shapes[SHAPES.index("heart")].tolist() == [*heart[1:], 3]
    assert shapes[SHAPES.index("circle")].tolist() == [0, 0, 0, 0]


def test_attribute_loss_is_small_for_right_logits_only():
    for labels, classes in (
        (patch_labels(Scene((Item("cross", "black", "small", 1, 1),))), PATCH_CLASSES),
        (class_labels(Scene((Item("cross", "black", "small", 1, 1),))), CLASS_CLASSES),
    ):
        parts = [torch.nn.functional.one_hot(labels[..., i], size) for i, size in enumerate(classes)]
        logits = 20.0 * torch.cat(parts, dim=-1)[None]
        assert attribute_loss(logits, labels[None], classes) < 1e-3 < attribute_loss(-logits, labels[None], classes)


def test_training_is_seeded_and_learns():
    scenes = sample_scenes(48, seed=1)
    first, second = (train(scenes, batch_size=8, learning_rate=1e-3, seed=5).state_dict() for _ in range(2))
    untrained = open_clip.create_model(MODEL).visual.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs between two runs of one seed"
        assert not torch.equal(tensor, untrained[name])
