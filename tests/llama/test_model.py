"""The frozen language model against transformers' LLaMA, and its cache against its full forward pass."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.errors import UserError
from lav2.llama import KVCache, Llama, LlamaConfig, load_llama, save_llama
from lav2.llama.generation import generate
from lav2.llama.loading import fingerprint

TOKENIZER = Path(__file__).parents[2] / "lav2" / "demo" / "weights" / "llama" / "tokenizer.model"


@pytest.fixture(scope="module", params=["multi_head", "grouped_query", "tied"])
def theirs(request, tmp_path_factory):
    """A random LLaMA made and saved by transformers: (model, folder)."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4 if request.param == "multi_head" else 2,
        tie_word_embeddings=request.param == "tied",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.12,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(tmp_path):
    """A random LLaMA saved by :func:`save_llama`."""
    shape = LlamaConfig(vocab_size=640, hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=80)
    save_llama(Llama(shape).reset_parameters(), TOKENIZER, tmp_path, torch.float32)
    return tmp_path


def change_config(folder, **changes):
    """Set keys in a folder's config.json; a key set to ... is removed."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def test_logits_equal_transformers(theirs):
    model, folder = theirs
    tokens = torch.randint(0, 97, (2, 17))
    with torch.no_grad():
        difference = (load_llama(folder)(tokens) - model(tokens).logits).abs().max()
    assert difference < 1e-5, difference


def test_greedy_generation_equals_transformers(theirs):
    model, folder = theirs
    prompts = [[1, 5, 9, 30, 7], [1, 44], [1, 8, 8, 60]]
    ours = generate(load_llama(folder), prompts, max_new_tokens=40, eos_id=2)
    for prompt, answer in zip(prompts, ours, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=2, pad_token_id=2
        )[0, len(prompt) :].tolist()
        assert answer == [token for token in expected if token != 2]


def test_a_loaded_model_is_frozen(folder):
    assert not any(parameter.requires_grad for parameter in load_llama(folder).parameters())


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_damaged_weights_are_named(folder, damage):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(48)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="layers.1.attention.wq.bias" if damage == "unexpected" else "feed_forward.w3"):
        load_llama(folder)


def test_rotary_frequencies_of_old_conversions_are_ignored(folder):
    before = fingerprint(load_llama(folder))
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(2)}
    save_file(load_file(folder / "model.safetensors") | frequencies, folder / "model.safetensors")
    assert fingerprint(load_llama(folder)) == before


@pytest.mark.parametrize("content", [b"", b"no tensors at all", None], ids=["empty", "text", "cut"])
def test_a_corrupt_weight_file_is_named(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load_llama(folder)


def test_a_sharded_folder_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="not read yet; merge them into one model.safetensors"):
        load_llama(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "qwen2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling asks for 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling asks for 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "rope_parameters asks for 'yarn'"),
        ({"rope_scaling": 2.0}, "rope_scaling is 2.0; expected null or an object"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"head_dim": 16}, "head_dim is 16; only .* = 12"),
        ({"hidden_size": ..., "vocab_size": ...}, "lacks vocab_size, hidden_size;"),
        ({"num_attention_heads": ..., "num_key_value_heads": ...}, "lacks num_attention_heads, num_key_value_heads;"),
        ({"hidden_size": "48"}, "hidden_size is '48'; expected int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected int"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None; expected float"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings is 0; expected bool"),
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_llama(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds no JSON object"), ("{", "is no JSON"), ("\udcff", "is no JSON")]
)
def test_a_config_that_is_no_json_object_is_refused(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"config.json {message}"):
        load_llama(folder)


def test_settings_that_change_nothing_are_accepted(folder):
    before = load_llama(folder).config
    change_config(folder, rope_scaling=None, head_dim=12, attention_bias=False, mlp_bias=False, hidden_act=...)
    assert load_llama(folder).config == before
    change_config(folder, rope_scaling={"type": "default"}, rope_theta=..., rope_parameters={"rope_theta": 500})
    assert load_llama(folder).config.rope_theta == 500


def test_cache_equals_full_forward(llama, tokens):
    """Invariant 5: prompt, then token by token."""
    caches = [KVCache(llama.config, len(tokens), tokens.shape[1], llama.tok_embeddings.weight) for _ in llama.layers]
    parts = [llama(tokens[:, :4], caches=caches)] + [llama(tokens[:, i : i + 1], caches=caches) for i in range(4, 9)]
    assert torch.allclose(torch.cat(parts, dim=1), llama(tokens), atol=1e-4)


def test_left_padding_changes_nothing(llama, tokens):
    """Invariant 5: a padded row gives the logits of the row alone, whatever stands in the padding."""
    padded = torch.cat((torch.full((3, 4), 49), tokens), dim=1)
    padding = torch.tensor([4, 4, 4])
    assert torch.allclose(llama(padded, padding=padding)[:, 4:], llama(tokens), atol=1e-4)


def test_sampling_is_seeded_and_respects_top_p(llama):
    def sample(seed, top_p=1.0):
        return generate(llama, [[1, 2, 3]] * 4, max_new_tokens=20, eos_id=49, temperature=1.5, top_p=top_p, seed=seed)

    assert sample(0) == sample(0) != sample(1)
    greedy = generate(llama, [[1, 2, 3]] * 4, max_new_tokens=20, eos_id=49)
    assert sample(0, top_p=1e-6) == greedy


def test_a_prompt_too_long_is_refused(llama):
    with pytest.raises(UserError, match="64"):
        generate(llama, [[1] * 64], max_new_tokens=1, eos_id=2)


def test_fingerprint_tells_weights_apart_and_ignores_the_dtype(llama):
    before = fingerprint(llama)
    llama.to(torch.bfloat16)
    assert fingerprint(llama) == before
    llama.layers[3].feed_forward.w2.weight[0, 0] += 1
    assert fingerprint(llama) != before
