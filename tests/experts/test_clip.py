"""Zero-shot tags: a real open_clip model with random weights for the path, given vectors for the numbers."""

import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lav2.errors import UserError
from lav2.experts.clip import Clip, Tags, load_clip

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a tiny CLIP's random weights; its architecture is open_clip's ``tiny-test``."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-test.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-test").state_dict(), folder / "clip.safetensors")
    return folder / "clip.safetensors"


class GivenVectors:
    """Words and an image whose cosines are known."""

    scale, fingerprint = 10.0, "given"
    cosines = {"a photo of a dog": 0.9, "a photo of a cat": 0.8, "a photo of a car": 0.2, "a photo of a tree": 0.85}

    def encode_texts(self, texts):
        return torch.tensor([[self.cosines[text], math.sqrt(1 - self.cosines[text] ** 2)] for text in texts])

    def encode_image(self, image):
        return torch.tensor([1.0, 0.0])


def test_tags_are_the_likeliest_words_of_the_softmax(picture):
    words = ["dog", "cat", "car", "tree"]
    # by hand: exp(10 · cosine), normalised: dog .506, tree .307, cat .186, car .0005
    share = {word: math.exp(10 * GivenVectors.cosines[f"a photo of a {word}"]) for word in words}
    cat = share["cat"] / sum(share.values())
    assert cat == pytest.approx(0.186, abs=5e-4)
    assert Tags(GivenVectors(), words)(picture) == "dog, tree, cat"
    assert Tags(GivenVectors(), words, min_probability=cat - 1e-4)(picture) == "dog, tree, cat"
    assert Tags(GivenVectors(), words, min_probability=cat + 1e-4)(picture) == "dog, tree"
    assert Tags(GivenVectors(), words, count=1)(picture) == "dog"
    assert Tags(GivenVectors(), words, min_probability=0, count=9)(picture) == "dog, tree, cat, car"


def test_the_towers_are_open_clips(weights, picture, tmp_path):
    clip = load_clip("tiny-test", str(weights), "cpu")
    assert load_clip("tiny-test", str(weights), "cpu") is clip
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-test", pretrained=str(weights))
    texts = [f"word {number}" for number in range(5)]
    with torch.no_grad():
        images = model.eval().encode_image(preprocess(picture)[None])
        expected = model.encode_text(open_clip.get_tokenizer("tiny-test")(texts))
    torch.testing.assert_close(clip.encode_image(picture), images[0] / images[0].norm())
    vectors = clip.encode_texts(texts, batch_size=2)
    torch.testing.assert_close(vectors, expected / expected.norm(dim=-1, keepdim=True))
    assert clip.scale == pytest.approx(float(model.logit_scale.detach().exp()))
    file = tmp_path / "words.txt"
    file.write_text("word 0\n\n word 1 \nword 2\n")
    tags = Tags(clip, file, template="{}", count=2, min_probability=0)
    best = (vectors[:3] @ clip.encode_image(picture)).topk(2).indices.tolist()
    assert tags(picture) == ", ".join(f"word {index}" for index in best)


def test_a_fingerprint_is_of_the_weights_and_the_settings(weights, tmp_path):
    clip = Clip("tiny-test", weights, "cpu")
    other = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    other["logit_scale"] += 0.5
    save_file(other, tmp_path / "other.safetensors")
    assert Clip("tiny-test", tmp_path / "other.safetensors", "cpu").fingerprint != clip.fingerprint
    prints = {Tags(GivenVectors(), ["dog", "cat"], count=count).fingerprint for count in (1, 2)}
    assert len(prints | {Tags(GivenVectors(), ["dog"], count=1).fingerprint}) == 3


@pytest.mark.parametrize("damage", ["name", "missing", "garbage", "other model"])
def test_what_cannot_be_loaded_is_named(weights, tmp_path, damage):
    path, name = tmp_path / "clip.safetensors", "tiny-test"
    if damage == "name":
        path, name = weights, "hf-hub:someone/something"
    elif damage == "garbage":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "other model":
        save_file({"visual.proj": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=name if damage == "name" else str(path)) as caught:
        Clip(name, path, "cpu")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_words_is_named(tmp_path):
    (tmp_path / "words.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no words"):
        Tags(GivenVectors(), tmp_path / "words.txt")
    with pytest.raises(UserError, match="nowhere.txt"):
        Tags(GivenVectors(), tmp_path / "nowhere.txt")
