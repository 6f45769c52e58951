"""Hugging Face's ``config.json`` ↔ :class:`~lav2.llama.LlamaConfig`."""

from pathlib import Path
from typing import Any

from lav2.errors import UserError
from lav2.llama.config import LlamaConfig, RopeScaling
from lav2.llama.files import read_json, shape_settings

# Hugging Face's config key → ours
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_length",
    "tie_word_embeddings": "tie_embeddings",
}

# likewise in what its rope_scaling says, for each type of rotary positions
ROPE_KEYS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_max_length",
    },
}

# settings of which the model here knows one value only, Hugging Face's default
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_config(folder: Path) -> LlamaConfig:
    """The :class:`LlamaConfig` in a folder's ``config.json``.

    Raises:
        UserError: the file is missing or damaged, or describes a model that :class:`Llama` does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"no LLaMA at {folder}: {path} is missing; llama.path must name a folder with config.json (Hugging Face) "
            "or params.json (Meta) and the weights, or a .gguf file"
        )
    stored = read_json(path)
    if stored.get("model_type") != "llama":
        raise UserError(f"{path} describes a {stored.get('model_type')!r} model; only 'llama' is supported")
    stored |= (rope := rope_settings(stored, path))
    for key, value in FIXED.items():
        if stored.get(key, value) != value:
            raise UserError(f"{path}: {key} is {stored[key]!r}; only {value!r} is supported")
    if stored.get("num_key_value_heads") is None and "num_attention_heads" in stored:
        stored["num_key_value_heads"] = stored["num_attention_heads"]
    config = LlamaConfig(**shape_settings(stored, CONFIG_KEYS, path), rope_scaling=rope_scaling(rope, path))
    if stored.get("head_dim") not in (None, config.head_size):
        raise UserError(
            f"{path}: head_dim is {stored['head_dim']!r}; only hidden_size / num_attention_heads = {config.head_size} "
            "is supported"
        )
    return config


def rope_settings(stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """What ``stored`` says of rotary positions one level down, where transformers 5 has ``rope_theta`` too."""
    settings: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = stored.get(key) or {}
        if not isinstance(value, dict):
            raise UserError(f"{path}: {key} is {value!r}; expected null or an object")
        settings |= value
    return settings


def rope_scaling(rope: dict[str, Any], path: Path) -> RopeScaling | None:
    """How the rotary positions that ``rope`` describes are scaled.

    Raises:
        UserError: in a way that is not supported, or by something that is no number.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_KEYS:
        raise UserError(f"{path}: rotary positions of type {kind!r} are not supported, only {', '.join(ROPE_KEYS)}")
    for key in ROPE_KEYS[kind]:
        if type(rope.get(key)) not in (int, float):
            raise UserError(f"{path}: {key} of the rotary positions is {rope.get(key)!r}; expected a number")
    if kind == "default":
        return None
    return RopeScaling(**{ours: rope[key] for key, ours in ROPE_KEYS[kind].items()})


def config_json(config: LlamaConfig) -> dict[str, Any]:
    """What ``config.json`` says of ``config``; transformers 4 and 5 read it alike."""
    stored = {key: getattr(config, ours) for key, ours in CONFIG_KEYS.items()}
    if scaling := config.rope_scaling:
        kind = "linear" if scaling.original_max_length is None else "llama3"
        stored["rope_scaling"] = {"rope_type": kind} | {
            key: getattr(scaling, ours) for key, ours in ROPE_KEYS[kind].items()
        }
    return stored | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
