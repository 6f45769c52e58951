"""Meta's folders, made of transformers' weights: the same logits however many ranks share them."""

import dataclasses
import json

import pytest
import torch

from lav2.errors import UserError
from lav2.llama import RopeScaling, load_llama
from lav2.llama.loading import fingerprint
from tests.llama.stored import GENERATIONS, change_json, random_llama, save_meta, save_theirs, small_llama

SCALED = GENERATIONS["llama3.1"]["rope_parameters"] | {"original_max_position_embeddings": 8192}
# transformers' config and what Meta's params.json says of it
RELEASES = {
    "llama1": ({}, {}),
    "llama2": ({}, {"ffn_dim_multiplier": 1.3}),
    "llama3": ({}, {"split_vocabulary": True, "rope_theta": 500000.0, "vocab_size": 96, "use_scaled_rope": False}),
    "llama3.1": (
        {"rope_parameters": SCALED, "tie_word_embeddings": False, "max_position_embeddings": 131072},
        {"split_vocabulary": True, "rope_theta": 500000.0, "vocab_size": 96, "use_scaled_rope": True},
    ),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("release", RELEASES)
def test_logits_equal_transformers(release, ranks, tmp_path):
    changes, params = RELEASES[release]
    model = random_llama(release, **changes)
    ours = load_llama(save_theirs(model, tmp_path / "theirs", "safetensors"))
    llama = load_llama(save_meta(tmp_path / "meta", ours, ranks, **params))
    tokens = torch.randint(0, 96, (2, 400))
    with torch.no_grad():
        assert (llama(tokens) - model(tokens).logits).abs().max() < 1e-5
    assert llama.config == ours.config
    assert fingerprint(llama) == fingerprint(ours)


def test_llama_3_2_is_tied_though_its_head_is_stored(tmp_path):
    model = random_llama("llama3.1", rope_parameters=SCALED | {"factor": 32.0}, max_position_embeddings=131072)
    ours = load_llama(save_theirs(model, tmp_path / "theirs", "safetensors"))
    llama = load_llama(save_meta(tmp_path / "meta", ours, rope_theta=500000.0, use_scaled_rope=True))
    tokens = torch.randint(0, 96, (2, 400))
    with torch.no_grad():
        assert (llama(tokens) - model(tokens).logits).abs().max() < 1e-5
        llama.config = dataclasses.replace(llama.config, rope_scaling=None)
        assert (llama(tokens) - model(tokens).logits).abs().max() > 1e-3
        llama.config = dataclasses.replace(llama.config, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    assert llama.config == ours.config and llama.config.tie_embeddings
    assert fingerprint(llama) == fingerprint(ours)


@pytest.mark.parametrize(
    ("params", "length"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"norm_eps": 1e-5, "rope_theta": 1000000.0}, 16384),
        ({"norm_eps": 1e-5, "rope_theta": 500000.0}, 8192),
        ({"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
    ],
)
def test_the_longest_sequence_is_that_of_the_release(params, length, tmp_path):
    assert load_llama(save_meta(tmp_path, small_llama(), **params)).config.max_length == length


def test_unset_params_are_no_params(tmp_path):
    llama = small_llama(num_kv_heads=4)
    before = load_llama(save_meta(tmp_path, llama)).config
    change_json(tmp_path / "params.json", n_kv_heads=None, rope_theta=None, vocab_size=..., lora_args=None)
    assert load_llama(tmp_path).config == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": {"num_experts": 8}}, "params.json: moe is {'num_experts': 8}; a model with that is not supported"),
        ({"vision_chunk_size": 560}, "vision_chunk_size is 560"),
        ({"quantization_args": {"group_size": 32}}, "quantization_args is"),
        ({"dim": ..., "n_heads": None}, "params.json lacks dim, n_heads,"),
        ({"dim": "48"}, "dim is '48'; expected int"),
        ({"n_layers": 3}, "9 missing .first: layers.2.attention.wk.weight"),
        (
            {"n_kv_heads": 4},
            r"consolidated.00.pth: layers.0.attention.wk.weight has shape \(24, 48\), expected \(48, 48",
        ),
        ({"vocab_size": 32000}, r"output.weight has shape \(640, 48\), expected \(32000, 48\)"),
    ],
    ids=str,
)
def test_params_that_do_not_fit_are_refused(changes, message, tmp_path):
    change_json(save_meta(tmp_path, small_llama()) / "params.json", **changes)
    with pytest.raises(UserError, match=message):
        load_llama(tmp_path)


@pytest.mark.parametrize(
    ("ranks", "lost", "message"),
    [
        (1, [0], r"no weights at .*consolidated.00.pth"),
        (4, [1], "consolidated.01.pth is missing: the shards go up to 03"),
        (4, [3], "consolidated.03.pth is missing: this LLaMA is stored in 4 such files"),
        (4, [2, 3], "consolidated.02.pth is missing: this LLaMA is stored in 4 such files"),
    ],
)
def test_a_missing_shard_is_named(ranks, lost, message, tmp_path):
    save_meta(tmp_path, small_llama(num_kv_heads=4), ranks)
    for rank in lost:
        (tmp_path / f"consolidated.{rank:02d}.pth").unlink()
    with pytest.raises(UserError, match=message):
        load_llama(tmp_path)


def test_shards_of_different_models_are_refused(tmp_path):
    llama, other = small_llama(), small_llama(num_layers=3)
    for name in ("mixed", "norms", "many"):
        save_meta(tmp_path / name, llama, 2)
    save_meta(tmp_path / "other", other, 2).joinpath("consolidated.01.pth").rename(
        tmp_path / "mixed" / "consolidated.01.pth"
    )
    with pytest.raises(
        UserError, match="consolidated.01.pth: layers.2.attention.wk.weight has shape .* in consol.*None"
    ):
        load_llama(tmp_path / "mixed")

    torch.nn.init.uniform_(llama.norm.weight, 0.5, 1.5)
    save_meta(tmp_path / "tuned", llama, 2).joinpath("consolidated.01.pth").rename(
        tmp_path / "norms" / "consolidated.01.pth"
    )
    with pytest.raises(UserError, match="consolidated.01.pth: norm.weight is not the one in consolidated.00.pth"):
        load_llama(tmp_path / "norms")

    save_meta(tmp_path / "whole", llama).joinpath("consolidated.00.pth").rename(
        tmp_path / "many" / "consolidated.00.pth"
    )
    with pytest.raises(UserError, match="holds 2 shards, but consolidated.00.pth is one of 1"):
        load_llama(tmp_path / "many")


def test_a_file_of_another_kind_of_model_is_refused(tmp_path):
    save_meta(tmp_path, small_llama())
    torch.save({"vision.conv1.weight": torch.zeros(3, 3)}, tmp_path / "consolidated.00.pth")
    with pytest.raises(UserError, match="consolidated.00.pth holds no tok_embeddings.weight"):
        load_llama(tmp_path)
    torch.save([torch.zeros(3)], tmp_path / "consolidated.00.pth")
    with pytest.raises(UserError, match="consolidated.00.pth holds no dictionary of tensors"):
        load_llama(tmp_path)


def test_a_folder_with_both_descriptions_is_hugging_faces(tmp_path):
    """Meta's later releases put ``params.json`` beside the converted model."""
    model = random_llama("llama1")
    save_theirs(model, tmp_path, "safetensors")
    (tmp_path / "params.json").write_text(json.dumps({"dim": 1}))
    assert load_llama(tmp_path).config.hidden_size == 48
