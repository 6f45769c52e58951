"""The frozen language model against transformers' LLaMA, and its cache against its full forward pass."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.errors import UserError
from lav2.llama import KVCache, load_llama
from lav2.llama.generation import generate
from lav2.llama.loading import fingerprint

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers (Python 3.11+)")


@pytest.fixture(scope="module", params=["multi_head", "grouped_query", "tied"])
def theirs(request, tmp_path_factory):
    """A random LLaMA made and saved by transformers: (model, folder)."""
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


def test_a_loaded_model_is_frozen(theirs):
    assert not any(parameter.requires_grad for parameter in load_llama(theirs[1]).parameters())


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_damaged_weights_are_named(theirs, tmp_path, damage):
    folder = theirs[1]
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(48)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match="layers.1.attention.wq.bias" if damage == "unexpected" else "feed_forward.w3"):
        load_llama(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match="qwen2"):
        load_llama(tmp_path)


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
