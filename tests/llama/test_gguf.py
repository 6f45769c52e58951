"""GGUF files: values against the formats' definitions, logits against transformers reading the same file."""

import sys

import numpy as np
import pytest
import torch

from lav2.errors import UserError
from lav2.llama import Llama, RopeScaling, load_llama
from lav2.llama.gguf import GgufCheckpoint
from tests.llama.gguf_files import SHAPE, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def random_llama(**changes) -> Llama:
    torch.manual_seed(0)
    config = type(SHAPE)(**vars(SHAPE) | changes)
    return Llama(config).reset_parameters(std=0.3).requires_grad_(False).eval()


@pytest.fixture
def stored(tmp_path):
    """Write a random LLaMA as a GGUF file: ``stored(**changes)`` as for :func:`write_gguf`."""
    return lambda **changes: write_gguf(tmp_path / "model.gguf", random_llama(), **changes)


def dequantized(raw: bytes, stored_as: str) -> np.ndarray:
    """The values in ``raw`` by the definition of their format: blocks of 32 with a scale, and perhaps a minimum."""
    if stored_as in ("F32", "F16"):
        return np.frombuffer(raw, stored_as.replace("F", "f").replace("32", "4").replace("16", "2")).astype(np.float32)
    if stored_as == "BF16":
        return (np.frombuffer(raw, "u2").astype("u4") << 16).view("f4")
    fields = {"Q8_0": [("q", "i1", 32)], "Q4_0": [("q", "u1", 16)], "Q4_1": [("m", "f2"), ("q", "u1", 16)]}
    blocks = np.frombuffer(raw, [("d", "f2"), *fields[stored_as]])
    scale, q = blocks["d"].astype(np.float32)[:, None], blocks["q"]
    if stored_as == "Q8_0":
        return (scale * q).flatten()
    q = np.concatenate((q & 15, q >> 4), axis=1).astype(np.float32)
    return (scale * (q - 8) if stored_as == "Q4_0" else scale * q + blocks["m"].astype(np.float32)[:, None]).flatten()


@pytest.mark.parametrize("stored_as", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_values_are_those_of_the_format(tmp_path, stored_as):
    model = random_llama()
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "model.gguf", model, stored_as))
    expected = model.state_dict()
    assert checkpoint.shapes == {name: tensor.shape for name, tensor in expected.items()}
    for name, tensor in expected.items():
        raw = gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType["F32" if tensor.dim() == 1 else stored_as])
        values = dequantized(raw.tobytes(), "F32" if tensor.dim() == 1 else stored_as)
        assert torch.equal(checkpoint[name].float(), torch.from_numpy(values).view(tensor.shape)), name
        assert (checkpoint[name] - tensor).abs().max() < {"F": 1e-3, "B": 1e-2, "Q": 0.2}[stored_as[0]]


@pytest.mark.parametrize(
    ("stored_as", "changes"),
    [
        ("F16", {}),
        ("Q4_1", {"tie_embeddings": True}),
        ("Q8_0", {"num_kv_heads": 4, "rope_theta": 5e5, "norm_eps": 1e-5, "max_length": 128}),
    ],
)
def test_logits_equal_transformers(tmp_path, stored_as, changes):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    model = random_llama(**changes)
    write_gguf(tmp_path / "model.gguf", model, stored_as)
    ours = load_llama(tmp_path / "model.gguf")
    assert ours.config.tie_embeddings == model.config.tie_embeddings
    assert ours.config.max_length == model.config.max_length
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    tokens = torch.randint(0, 97, (2, 17))
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 1
    assert (ours(tokens) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_rule_of_llama_3_1_is_recognised(tmp_path, factor):
    """llama.cpp's converter stores by how much transformers slows each frequency."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    model = random_llama(rope_theta=500000.0)
    rope = {"rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope
    )
    slowed = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")[0]
    factors = 500000.0 ** -(torch.arange(0, 16, 2) / 16) / slowed
    path = write_gguf(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": factors.numpy()})
    assert load_llama(path).config.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)


def test_linear_scaling(stored):
    def scaling(**settings):
        settings = {f"llama.rope.scaling.{key}": value for key, value in settings.items()}
        return GgufCheckpoint(stored(settings=settings)).config.rope_scaling

    assert scaling(type="linear", factor=4.0) == scaling(factor=4.0) == RopeScaling(4.0)
    assert scaling(type="none", factor=4.0) is scaling(type="linear", factor=1.0) is None


def test_a_file_in_another_dtype(stored):
    path = stored(stored_as="Q8_0")
    for name, parameter in load_llama(path, torch.bfloat16).named_parameters():
        assert torch.equal(parameter, GgufCheckpoint(path)[name].bfloat16()) and not parameter.requires_grad


NAN = np.full((96, 64), np.nan, np.float32)
REFUSED = {
    "architecture": ({"architecture": "qwen2"}, "holds a model of the architecture 'qwen2'; only 'llama'"),
    "format": ({"stored_as": "Q5_0"}, "token_embd.weight is stored as Q5_0; only F32, F16, BF16, Q8_0, Q4_0, Q4_1"),
    "not finite": (
        {"tensors": {"blk.1.ffn_up.weight": NAN}},
        "layers.1.feed_forward.w3.weight holds values that are not finite",
    ),
    "split": ({"settings": {"split.count": 3}}, "one of 3 parts of a split GGUF file"),
    "experts": ({"settings": {"llama.expert_count": 8}}, "llama.expert_count is 8; only 0"),
    "head size": ({"settings": {"llama.rope.dimension_count": 8}}, "llama.rope.dimension_count is 8; only 16"),
    "scaling": ({"settings": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type is 'yarn'"),
    "factors": ({"tensors": {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}}, "are not those of LLaMA 3.1's"),
    "setting": ({"settings": {"llama.block_count": None}}, "lacks llama.block_count;"),
    "per layer": ({"settings": {"llama.attention.head_count_kv": [2, 4]}}, r"num_kv_heads is \[2, 4\]; expected one"),
    "embeddings": ({"tensors": {"token_embd.weight": None}}, "lacks token_embd.weight;"),
    "missing": ({"tensors": {"blk.0.attn_k.weight": None}}, r"1 missing \(first: layers.0.attention.wk.weight\)"),
    "bias": ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "first: layers.0.attention.wq.bias"),
    "misshapen": ({"tensors": {"output_norm.weight": np.ones(32, np.float32)}}, r"norm.weight has shape \(32,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_named(stored, case):
    changes, message = REFUSED[case]
    path = stored(**changes)
    with pytest.raises(UserError, match=message) as caught:
        load_llama(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no GGUF file at"),
        (b"", r"is no GGUF file: it starts with b''"),
        (b"<!DOCTYPE html><html>", r"is no GGUF file: it starts with b'<!DO'"),
        (b"GGUF\x63\0\0\0" + bytes(60), "is truncated or damaged"),
    ],
)
def test_what_is_no_gguf_file_is_named(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_llama(path)


def test_a_truncated_file_is_named_wherever_it_ends(stored):
    path = stored(stored_as="Q4_0", settings={"tokenizer.ggml.tokens": ["<s>", "</s>"], "general.name": "small"})
    content = path.read_bytes()
    header = content.index(b"blk.0.attn_q.weight")
    for end in [
        *range(4, header + 100, 7),
        *range(header + 100, len(content), 3001),
        len(content) - 32,
    ]:  # 32: with padding
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="is truncated or damaged"):
            GgufCheckpoint(path)


def test_a_missing_package_is_named(stored, monkeypatch):
    path = stored()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[gguf\]"'):
        load_llama(path)
