"""Folders that transformers wrote, against transformers itself; and what of them is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig, RopeScaling, load_llama, save_llama
from lav2.llama.generation import generate
from lav2.llama.loading import fingerprint, read_config
from tests.llama.stored import (
    GENERATIONS,
    TOKENIZER,
    change_json,
    random_llama,
    save_theirs,
    small_llama,
)

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FORMS = ("safetensors", "shards", "bin", "bin shards")


@pytest.fixture(scope="module", params=GENERATIONS)
def theirs(request, tmp_path_factory):
    """A random LLaMA made by transformers, and the folders it was saved to: (model, {form: folder})."""
    model = random_llama(request.param)
    return model, {form: save_theirs(model, tmp_path_factory.mktemp("llama"), form) for form in FORMS}


@pytest.fixture
def folder(tmp_path):
    save_llama(small_llama(), TOKENIZER, tmp_path, torch.float32)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_transformers(theirs, form):
    model, folders = theirs
    tokens = torch.randint(0, 96, (2, 200))  # long enough for scaled rotary positions to tell
    llama = load_llama(folders[form])
    with torch.no_grad():
        difference = (llama(tokens) - model(tokens).logits).abs().max()
        assert difference < 1e-5, difference
        if llama.config.rope_scaling:
            llama.config = dataclasses.replace(llama.config, rope_scaling=None)
            assert (llama(tokens) - model(tokens).logits).abs().max() > 0.1


def test_greedy_generation_equals_transformers(theirs):
    """64 tokens for prompts of unequal length, padded on the left on both sides."""
    model, folders = theirs
    prompts = [torch.randint(3, 96, (length,)).tolist() for length in (40, 7, 21)]
    padded = torch.tensor([[0] * (40 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (40 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    expected = model.generate(padded, attention_mask=mask, max_new_tokens=64, do_sample=False, pad_token_id=0)[:, 40:]
    absent = next(token for token in range(96) if token not in expected)
    assert generate(load_llama(folders["shards"]), prompts, max_new_tokens=64, eos_id=absent) == expected.tolist()


def test_what_is_saved_here_transformers_reads(theirs, tmp_path):
    model, folders = theirs
    save_llama(load_llama(folders["safetensors"]), TOKENIZER, tmp_path, torch.float32)
    again = type(model).from_pretrained(tmp_path)
    tokens = torch.randint(0, 96, (1, 150))
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-5)
    assert load_llama(tmp_path).config == load_llama(folders["safetensors"]).config


def test_the_settings_of_llama_3_1_before_transformers_5(tmp_path):
    """``rope_theta`` at the top, ``rope_scaling`` beside it: how Meta published it."""
    model = random_llama("llama3.1")
    save_theirs(model, tmp_path, "safetensors")
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    change_json(tmp_path / "config.json", rope_parameters=..., rope_scaling=rope, rope_theta=theta)
    llama = load_llama(tmp_path)
    assert llama.config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    tokens = torch.randint(0, 96, (1, 200))
    with torch.no_grad():
        assert torch.allclose(llama(tokens), model(tokens).logits, atol=1e-5)


def test_rope_scaling_survives_json():
    shape = small_llama(rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192)).config
    assert LlamaConfig(**json.loads(json.dumps(dataclasses.asdict(shape)))) == shape


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": 0.5}, "factor is 0.5; it must be at least 1"),
        ({"factor": 8.0, "low_frequency_factor": 1.0}, "together, or none"),
        ((8.0, 4.0, 1.0, 8192), "low_frequency_factor is 4.0; it must be above 0 and below high_frequency_factor, 1.0"),
    ],
)
def test_rope_scaling_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        RopeScaling(**values) if isinstance(values, dict) else RopeScaling(*values)


def test_a_stored_head_that_repeats_the_embeddings_is_left_out(tmp_path):
    model = random_llama("llama3.1")
    save_theirs(model, tmp_path, "safetensors")
    before = fingerprint(load_llama(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert fingerprint(load_llama(tmp_path)) == before
    head[5, 5] += 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="config.json has tie_word_embeddings, yet lm_head.weight .* differ"):
        load_llama(tmp_path)


def test_rotary_frequencies_of_old_conversions_are_ignored(folder):
    before = fingerprint(load_llama(folder))
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(2)}
    save_file(load_file(folder / "model.safetensors") | frequencies, folder / "model.safetensors")
    assert fingerprint(load_llama(folder)) == before


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_tensors_that_do_not_fit_are_named_before_any_is_read(folder, damage, monkeypatch):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(48)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.delattr("lav2.llama.hugging_face.HuggingFaceCheckpoint.__getitem__")
    message = {
        "missing": "1 missing .first: layers.1.feed_forward.w3.weight",
        "unexpected": "1 unexpected .first: layers.1.attention.wq.bias",
        "misshapen": r"model.safetensors: layers.1.feed_forward.w3.weight has shape \(79, 48\), expected \(80, 48\)",
    }
    with pytest.raises(UserError, match=message[damage]):
        load_llama(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "describes a 'qwen2' model; only 'llama'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "describes a 'mistral' model; only 'llama'"),
        ({"model_type": ...}, "describes a None model"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary positions of type 'dynamic' are not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "rotary positions of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of the rotary positions is None"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of the rotary positions is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5; it must be at least 1"),
        ({"rope_scaling": 2.0}, "rope_scaling is 2.0; expected null or an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"head_dim": 16}, "head_dim is 16; only .* = 12"),
        ({"hidden_size": ..., "vocab_size": ...}, "lacks vocab_size, hidden_size,"),
        ({"num_attention_heads": ..., "num_key_value_heads": ...}, "lacks num_attention_heads, num_key_value_heads,"),
        ({"hidden_size": "48"}, "hidden_size is '48'; expected int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected int"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None; expected float"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings is 0; expected bool"),
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(folder, changes, message):
    change_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_llama(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds no JSON object"), ("{", "is no JSON"), ("\udcff", "is no JSON")]
)
def test_a_config_that_is_no_json_object_is_refused(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"config.json {message}"):
        load_llama(folder)


# config.json of models that people have, as far as it bears on the shape, and how many parameters they have
PUBLISHED = {
    "LLaMA 7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32},
        {"vocab_size": 32000, "rms_norm_eps": 1e-6},
        6_738_415_616,
    ),
    "LLaMA 2 70B": (
        {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80},
        {"vocab_size": 32000, "num_key_value_heads": 8, "rope_scaling": None, "max_position_embeddings": 4096},
        68_976_648_192,
    ),
    "TinyLlama 1.1B": (
        {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_hidden_layers": 22},
        {"vocab_size": 32000, "num_key_value_heads": 4, "rope_scaling": None, "rope_theta": 10000.0},
        1_100_048_384,
    ),
    "Llama 3.1 8B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32},
        {
            "vocab_size": 128256,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
            "rope_scaling": {"factor": 8.0} | LLAMA3,
        },
        8_030_261_248,
    ),
    "Llama 3.2 1B": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 16},
        {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 64, "rope_scaling": {"factor": 32.0} | LLAMA3}
        | {"rope_theta": 500000.0, "tie_word_embeddings": True},
        1_235_814_400,
    ),
    "SmolLM2 135M": (
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30},
        {"vocab_size": 49152, "num_key_value_heads": 3, "rope_interleaved": False, "rope_theta": 100000}
        | {"tie_word_embeddings": True},
        134_515_008,
    ),
}


@pytest.mark.parametrize(("size", "rest", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_models_have_as_many_parameters(size, rest, parameters, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | size | rest))
    config = read_config(tmp_path)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Llama(config).parameters()) == parameters
    assert (config.rope_scaling and config.rope_scaling.factor) == (rest.get("rope_scaling") or {}).get("factor")


def test_settings_that_change_nothing_are_accepted(folder):
    before = load_llama(folder).config
    change_json(
        folder / "config.json", rope_scaling=None, head_dim=12, attention_bias=False, mlp_bias=False, hidden_act=...
    )
    assert load_llama(folder).config == before
    change_json(
        folder / "config.json", rope_scaling={"type": "default"}, rope_theta=..., rope_parameters={"rope_theta": 500}
    )
    assert load_llama(folder).config.rope_theta == 500
