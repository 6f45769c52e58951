"""GGUF files, written by the package gguf."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from lav2.llama import Llama, LlamaConfig
from lav2.llama.gguf import CONFIG_KEYS, LAYER_NAMES, OUTER_NAMES

SHAPE = LlamaConfig(vocab_size=97, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96)
OURS = {ours: theirs for theirs, ours in (LAYER_NAMES | OUTER_NAMES).items()}


def gguf_name(name: str) -> str:
    if not name.startswith("layers."):
        return f"{OURS[name.removesuffix('.weight')]}.weight"
    _, index, rest = name.removesuffix(".weight").split(".", 2)
    return f"blk.{index}.{OURS[rest]}.weight"


def write_gguf(
    path: Path,
    model: Llama,
    stored_as: str = "F32",
    settings: Mapping = {},
    tensors: Mapping = {},
    architecture: str = "llama",
) -> Path:
    """Write ``model`` to ``path``, matrices in the format ``stored_as``, norms in F32.

    ``settings`` and ``tensors`` (by GGUF's names) are added or take the place of the model's; None leaves one out.
    """
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    config = model.config
    settings = {
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()},
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_size,
        "llama.vocab_size": config.vocab_size,
        **settings,
    }
    tensors = {gguf_name(name): tensor.float().numpy() for name, tensor in model.state_dict().items()} | tensors
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in settings.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            kind = gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind
            writer.add_key_value(key, value, kind, gguf.GGUFValueType.INT32 if key.endswith("token_type") else None)
    for name, values in tensors.items():
        if values is not None:
            kind = gguf.GGMLQuantizationType[stored_as if values.ndim == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece_settings(path) -> dict:
    """The GGUF settings of a SentencePiece file, as llama.cpp's converter takes them from it."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    pieces = list(gguf.vocab.SentencePieceVocab(path.parent).all_tokens())
    processor = SentencePieceProcessor(model_file=str(path))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.decode() for piece, _, _ in pieces],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [int(kind) for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.add_space_prefix": processor.encode("a", out_type=str)[0].startswith("▁"),
    }
