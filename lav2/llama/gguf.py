"""GGUF files: a LLaMA as llama.cpp keeps it, one file with quantised weights and the tokenizer inside.

llama.cpp rotates the pairs (x0, x1), (x2, x3) … of a LLaMA's heads, as Meta does, so query and key rows stay in order.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.config import LlamaConfig, RopeScaling
from lav2.llama.model import scaled_frequencies

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FORMATS = (*FLOATS, "Q8_0", "Q4_0", "Q4_1")

# GGUF's name → ours, inside a block and outside of the blocks
LAYER_NAMES = {
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
OUTER_NAMES = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}

# our setting → GGUF's key
CONFIG_KEYS = {
    "hidden_size": "llama.embedding_length",
    "num_layers": "llama.block_count",
    "num_heads": "llama.attention.head_count",
    "intermediate_size": "llama.feed_forward_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "max_length": "llama.context_length",
}
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies, one a pair


class GgufCheckpoint(Checkpoint):
    """The tensors of the LLaMA in the GGUF file ``path``, by Meta's names, each read when it is asked for.

    ``checkpoint[name]`` is in fp32 where the file is quantised, else a view of the memory-mapped file in its own dtype.

    Attributes:
        path: the file.
        config: the model's shape.
        shapes: the shape of every tensor.

    Raises:
        UserError: the file is missing, damaged, of another architecture or quantised in a way that is not read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        stored = read_gguf(self.path)
        self.config = llama_config(stored)
        self.tensors = {our_name(tensor.name): tensor for tensor in stored.tensors if tensor.name != ROPE_FACTORS}
        self.shapes = {name: torch.Size(reversed(tensor.shape.tolist())) for name, tensor in self.tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        stored = self.tensors[name]
        if (dtype := FLOATS.get(stored.tensor_type.name)) is not None:
            tensor = torch.from_numpy(stored.data).view(dtype)  # numpy has no bfloat16: that comes as bytes
        else:
            quants = require_gguf(self.path).quants
            tensor = torch.from_numpy(quants.dequantize(stored.data, stored.tensor_type))
        return tensor


@dataclass(frozen=True)
class GgufFile:
    """What stands in a GGUF file: its settings, and its tensors as gguf's ``ReaderTensor``, mapped and not yet read."""

    path: Path
    settings: dict[str, Any]
    tensors: list


def read_gguf(path: Path) -> GgufFile:
    """The content of the file ``path``; kept, because a vocabulary of 100,000 tokens takes seconds to read.

    Raises:
        UserError: the file is missing, damaged, no GGUF file, or one part of several.
    """
    if not path.is_file():
        raise UserError(f"no GGUF file at {path}")
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, size: int) -> GgufFile:
    with path.open("rb") as file:
        if (start := file.read(4)) != b"GGUF":
            raise UserError(f"{path} is no GGUF file: it starts with {start!r}, not with b'GGUF'")
    gguf = require_gguf(path)
    try:
        reader = gguf.GGUFReader(path, "c")  # c: writable in memory alone, as torch wants it
        settings = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, LookupError, OverflowError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); copy or download it again") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} has the byte order of another kind of machine; convert it with gguf-convert-endian")
    if settings.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {settings['split.count']} parts of a split GGUF file; merge them with "
            "llama-gguf-split --merge"
        )
    return GgufFile(path, settings, reader.tensors)


def require_gguf(path: Path):
    """The package that reads ``path``."""
    try:
        import gguf
    except ImportError:
        raise UserError(f'reading {path} needs the package gguf: pip install -e ".[gguf]"') from None
    return gguf


def llama_config(stored: GgufFile) -> LlamaConfig:
    """The shape of the LLaMA in a GGUF file.

    Raises:
        UserError: it is another model than :class:`lav2.llama.Llama` computes, or its weights are not readable here.
    """
    path, settings = stored.path, stored.settings
    if (architecture := settings.get("general.architecture")) != "llama":
        raise UserError(f"{path} holds a model of the architecture {architecture!r}; only 'llama' is supported")
    for tensor in stored.tensors:
        if tensor.tensor_type.name not in FORMATS:
            raise UserError(
                f"{path}: {tensor.name} is stored as {tensor.tensor_type.name}; only {', '.join(FORMATS)} are read, "
                "so take a file quantised in one of these"
            )
    shapes = {tensor.name: tensor.shape.tolist() for tensor in stored.tensors}
    lacks = [key for key in CONFIG_KEYS.values() if key not in settings]
    if "token_embd.weight" not in shapes:
        lacks.append("token_embd.weight")
    if lacks:
        raise UserError(f"{path} lacks {', '.join(lacks)}; a LLaMA's GGUF file has them")
    numbers = {ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
    numbers["num_kv_heads"] = settings.get("llama.attention.head_count_kv", numbers["num_heads"])
    numbers["rope_theta"] = settings.get("llama.rope.freq_base", 10000.0)
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise UserError(f"{path}: {name} is {value!r}; expected one number for all layers")
    config = LlamaConfig(
        vocab_size=shapes["token_embd.weight"][-1], tie_embeddings="output.weight" not in shapes, **numbers
    )
    # settings of which the model here knows one value only
    fixed = {
        "llama.expert_count": 0,
        "llama.rope.dimension_count": config.head_size,
        "llama.attention.key_length": config.head_size,
        "llama.attention.value_length": config.head_size,
        "llama.rope.scale_linear": 1.0,
    }
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: {key} is {settings[key]!r}; only {value!r} is supported")
    return replace(config, rope_scaling=rope_scaling(stored, config))


def rope_scaling(stored: GgufFile, config: LlamaConfig) -> RopeScaling | None:
    """How the rotary frequencies are slowed: linearly, or by LLaMA 3.1's rule, of which the file holds the outcome.

    Raises:
        UserError: in another way.
    """
    factors = next((tensor.data for tensor in stored.tensors if tensor.name == ROPE_FACTORS), None)
    kind = stored.settings.get("llama.rope.scaling.type", "linear")
    if factors is not None:
        scaling = RopeScaling(float(factors.max()), 1.0, 4.0, 8192)  # the last three as in LLaMA 3.1 and 3.2
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_size, 2) / config.head_size)
        expected = frequencies / scaled_frequencies(frequencies, scaling)
        if factors.shape != expected.shape or not torch.allclose(torch.from_numpy(factors), expected, rtol=1e-3):
            raise UserError(f"{stored.path}: {ROPE_FACTORS} are not those of LLaMA 3.1's rule, the only one supported")
        return scaling
    if kind not in ("none", "linear"):
        raise UserError(f"{stored.path}: llama.rope.scaling.type is {kind!r}; only 'none' and 'linear' are supported")
    factor = stored.settings.get("llama.rope.scaling.factor", 1.0)
    return RopeScaling(factor) if kind == "linear" and factor != 1 else None


def our_name(name: str) -> str:
    """GGUF's tensor name in Meta's words; a name of neither is returned as it is."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        index, _, rest = stem.removeprefix("blk.").partition(".")
        return f"layers.{index}.{LAYER_NAMES.get(rest, rest)}.{kind}"
    return f"{OUTER_NAMES.get(stem, stem)}.{kind}"
