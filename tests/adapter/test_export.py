"""An adapter without prompts, folded, is a LLaMA that transformers reads and that says the same."""

import json
from pathlib import Path

import pytest
import torch

import lav2
from lav2.adapter import AdaptedLlama, AdapterConfig, adapt
from lav2.adapter.export import check_foldable, export_llama, fold_tuning
from lav2.adapter.released import convert
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig, Tokenizer, load_llama, save_llama
from lav2.llama.generation import generate
from tests.adapter import authors
from tests.conftest import small_adapter

TOKENIZER = Path(lav2.__file__).parent / "demo" / "weights" / "llama" / "tokenizer.model"
TEXT = {"visual_layers": 0, "prompt_layers": 0, "prompt_length": 0}
TUNED = {
    "bias_and_scale": {},
    "scale_on_the_input": {"scale": "input"},
    "lora": {"bias": False, "scale": "none", "lora": {"rank": 3, "scaling": 0.5}},
    "everything": {"lora": {"rank": 2, "linears": ["wq", "wv", "w2"]}},
    "biases_as_released": {"scale": "none", "linears": ["wq", "wo", "w1", "w2", "w3"]},
    "attention_alone": {"linears": ["wk", "wv"], "norms": "blocks"},
    "feed_forward_alone": {"linears": ["w2"], "scale": "none", "norms": "none"},
    "norms_alone": {"bias": False, "scale": "none"},
}


def small_llama(**changes) -> Llama:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
    config = LlamaConfig(Tokenizer(TOKENIZER).vocab_size, max_length=64, rope_theta=5e4, **shape | changes)
    return Llama(config).reset_parameters(std=0.1).requires_grad_(False).eval()


def trained(llama: Llama, **changes) -> AdaptedLlama:
    model = adapt(llama, small_adapter(**TEXT | changes), feature_width=16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits_by_transformers(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    model, info = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        return model.eval()(tokens).logits


@pytest.mark.parametrize("changes", TUNED.values(), ids=TUNED)
def test_transformers_reads_it_and_says_the_same(changes, tokens, tmp_path):
    llama = small_llama()
    model = trained(llama, **changes)
    with torch.no_grad():
        expected, plain = model(tokens), llama(tokens)
    export_llama(model, TOKENIZER, tmp_path, torch.float32)
    assert (expected - plain).abs().max() > 0.01
    assert (logits_by_transformers(tmp_path, tokens) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [{"tie_embeddings": True}, {"num_kv_heads": 4}], ids=str)
def test_any_shape_of_llama(shape, tokens, tmp_path):
    model = trained(small_llama(**shape))
    with torch.no_grad():
        expected = model(tokens)
    export_llama(model, TOKENIZER, tmp_path, torch.float32)
    assert (logits_by_transformers(tmp_path, tokens) - expected).abs().max() < 1e-5


def test_the_authors_chat_model_becomes_a_plain_llama(tokens, tmp_path):
    """From their file to transformers: what their formulas say, without any of our code at inference."""
    from lav2.adapter import load_adapter

    llama = small_llama(num_kv_heads=4)
    save_llama(llama, TOKENIZER, tmp_path / "base", torch.float32)
    stored = authors.fill(authors.chat(32, 3, 48))
    torch.save({"model": stored}, tmp_path / "chat.pth")
    convert(tmp_path / "chat.pth", tmp_path / "adapter", tmp_path / "base")
    with torch.no_grad():
        expected = authors.Authors(stored, llama, 1, True).logits(tokens[0].tolist())
    model = load_adapter(tmp_path / "adapter", load_llama(tmp_path / "base"))
    export_llama(model, TOKENIZER, tmp_path / "plain", torch.float32)
    assert torch.allclose(logits_by_transformers(tmp_path / "plain", tokens[:1])[0], expected, atol=1e-4, rtol=1e-4)


def test_the_config_names_biases_where_there_are_some(tmp_path):
    for name, expected in (
        ("everything", (True, True)),
        ("attention_alone", (True, False)),
        ("feed_forward_alone", (False, True)),
        ("lora", (False, False)),
    ):
        export_llama(trained(small_llama(), **TUNED[name]), TOKENIZER, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["attention_bias"], config["mlp_bias"]) == expected
    assert load_llama(tmp_path / "lora")  # without biases it is a base like any other


def test_without_an_image_the_visual_path_can_be_left_out(tokens, features):
    from lav2.adapter.export import fold

    model = trained(small_llama(), visual_layers=2)
    with torch.no_grad():
        expected, seen = model(tokens), model(tokens, features)
        with pytest.raises(UserError, match="visual prompts in its first 2 layers.*text_only"):
            fold(model)
        plain = fold(model, text_only=True)
        assert torch.allclose(plain(tokens), expected, atol=1e-5) and not torch.allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"visual_layers": 0}], ids=str)
def test_prompts_cannot_be_folded(changes, tmp_path):
    model = trained(small_llama(), prompt_layers=2, prompt_length=3, **changes)
    before = {name: tensor.clone() for name, tensor in model.llama.state_dict().items()}
    for text_only in (False, True):
        with pytest.raises(UserError, match="prompts in its last 2 layers, and prompts cannot be folded"):
            export_llama(model, TOKENIZER, tmp_path / "out", text_only=text_only)
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.llama.state_dict().items())


GENERATES = {
    "paper": {"visual_layers": 2, "prompt_layers": 1, "prompt_length": 3},
    "lora": {"visual_layers": 2, "prompt_layers": 1, "prompt_length": 3} | TUNED["everything"] | {"scale": "input"},
    "late": {"fusion": "late", "prompt_layers": 2, "prompt_length": 4},
}


@pytest.mark.parametrize("changes", GENERATES.values(), ids=GENERATES)
def test_a_folded_adapter_keeps_its_prompts_and_answers_alike(changes, tokens, features):
    """Scales, biases, LoRA and norms stand in the base; prompts, gates and the visual path go on as before."""
    model = trained(small_llama(), **changes)
    prompts = [[1, 5, 9, 20, 7], [1, 14], [1, 8, 8]]

    def answers():
        with torch.inference_mode():
            hooks = model.bind(features, keep=True)
        return generate(model.llama, prompts, eos_id=[], hooks=hooks, max_new_tokens=20)

    with torch.no_grad():
        expected, blind, plain, written = model(tokens, features), model(tokens), model.llama(tokens), answers()
        assert fold_tuning(model) is model
        torch.testing.assert_close(model(tokens, features), expected, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(model(tokens), blind, atol=2e-4, rtol=1e-3)
    assert answers() == written
    assert (expected - blind).abs().max() > 0.01 < (blind - plain).abs().max()
    left = {name.split(".")[-1] for name, _ in model.adapter["instruction"].named_parameters()}
    assert left == {"prompt", "weight"}  # of the prompts and their gates


def test_what_folding_would_change_is_refused(tokens):
    model = trained(small_llama(), prompt_layers=1, prompt_length=3, prompt_projection="frozen")
    with torch.no_grad():
        expected = model(tokens)
        with pytest.raises(UserError, match="adapter.prompt_projection=frozen.*use it as it is"):
            fold_tuning(model)
        assert torch.equal(model(tokens), expected)


def test_folding_again_changes_nothing(tokens):
    """The base of a folded model has biases of its own."""
    model = fold_tuning(trained(small_llama(), **TUNED["bias_and_scale"]))
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(fold_tuning(model)(tokens), expected)


def test_images_as_tokens_cannot_be_folded():
    """LaVIN: its mixtures and its modality token would be lost."""
    lavin = AdapterConfig(fusion="tokens", visual_layers=0, prompt_layers=0, prompt_length=0, bias=False, scale="none")
    for text_only in (False, True):
        with pytest.raises(UserError, match="reads images as tokens .*share it as it is"):
            check_foldable(lavin, small_llama().config, text_only)
