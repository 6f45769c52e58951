"""Weights on disk → a frozen :class:`Llama`, and back.

The format is Hugging Face's LLaMA folder: ``config.json``, ``model.safetensors`` and ``tokenizer.model``. Its query and
key rows stand in another order than Meta's (halves instead of pairs), hence the permutation.
"""

import hashlib
import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.config import LlamaConfig
from lav2.llama.gguf import GgufCheckpoint
from lav2.llama.model import Llama
from lav2.llama.tokenizer import Tokenizer

# Hugging Face's name → ours, inside a layer and outside of the layers
LAYER_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER_NAMES = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}

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

# settings of which the model here knows one value only, Hugging Face's default
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def load_llama(path: str | Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The frozen LLaMA stored in the folder ``path``, in ``dtype`` and evaluation mode.

    Raises:
        UserError: the folder or a file is missing or damaged, the weights are in several files, the architecture is
            another one, or a tensor is missing, unexpected or misshapen (named in the message).
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        return load_gguf(folder, dtype)
    config = read_config(folder)
    weights_path = folder / "model.safetensors"
    tensors = {our_name(name): tensor for name, tensor in read_tensors(weights_path).items()}
    with torch.device("meta"):
        model = Llama(config)
    check_tensors(tensors, {name: p.shape for name, p in model.named_parameters()}, weights_path)
    for name in tensors:
        if name.endswith(("wq.weight", "wk.weight")):
            tensors[name] = pairs_from_halves(tensors[name], config.head_size)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def load_gguf(path: Path, dtype: torch.dtype) -> Llama:
    """The frozen LLaMA in the GGUF file ``path``; as :func:`load_llama`."""
    checkpoint = GgufCheckpoint(path)
    with torch.device("meta"):
        model = Llama(checkpoint.config)
    found = {name: torch.empty(shape, device="meta") for name, shape in checkpoint.shapes.items()}
    check_tensors(found, {name: p.shape for name, p in model.named_parameters()}, path)
    model.load_state_dict({name: checkpoint[name].to(dtype, copy=True) for name in checkpoint}, assign=True)
    return model.requires_grad_(False).eval()


def save_llama(
    model: Llama, tokenizer_path: str | Path, folder: str | Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write ``model`` and its tokenizer to ``folder`` so that :func:`load_llama` and transformers can read them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(tokenizer_path)
    if Path(tokenizer_path).resolve() != (folder / "tokenizer.model").resolve():
        shutil.copyfile(tokenizer_path, folder / "tokenizer.model")
    config = {theirs: getattr(model.config, ours) for theirs, ours in CONFIG_KEYS.items()}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config |= {"torch_dtype": str(dtype).removeprefix("torch.")}
    # LLaMA has no biases; one that an adapter was folded into may have them
    layer = model.layers[0]
    config |= {"attention_bias": layer.attention.wq.bias is not None}
    config |= {"mlp_bias": layer.feed_forward.w1.bias is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("wq.weight", "wk.weight", "wq.bias", "wk.bias")):
            tensor = halves_from_pairs(tensor, model.config.head_size)
        tensors[their_name(name)] = tensor.to(dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in the file ``path`` by Hugging Face's names, without the rotary frequencies of old conversions.

    Raises:
        UserError: the file is missing or damaged, or its folder holds it in shards.
    """
    index = path.with_name(path.name + ".index.json")
    if not path.is_file() and index.is_file():
        raise UserError(
            f"{index} lists several weight files: sharded folders are not read yet; merge them into one {path.name}, "
            'for example with transformers\' save_pretrained(folder, max_shard_size="1TB")'
        )
    if not path.is_file():
        raise UserError(f"no weights at {path}: a LLaMA folder holds config.json and model.safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}; copy or download it again") from None
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def read_config(folder: Path) -> LlamaConfig:
    """The :class:`LlamaConfig` in a folder's ``config.json``.

    Raises:
        UserError: the file is missing or damaged, or describes a model that :class:`Llama` does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"no LLaMA at {folder}: {path} is missing; llama.path must name a folder with config.json and weights"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no JSON object; it must be a LLaMA's config.json")
    if stored.get("model_type") != "llama":
        raise UserError(f"{path} describes a {stored.get('model_type')!r} model; only 'llama' is supported")
    for key, value in FIXED.items():
        if stored.get(key, value) != value:
            raise UserError(f"{path}: {key} is {stored[key]!r}; only {value!r} is supported")
    stored |= rotary_base(stored, path)
    if stored.get("num_key_value_heads") is None and "num_attention_heads" in stored:
        stored["num_key_value_heads"] = stored["num_attention_heads"]
    config = LlamaConfig(**shape_settings(stored, path))
    if stored.get("head_dim") not in (None, config.head_size):
        raise UserError(
            f"{path}: head_dim is {stored['head_dim']!r}; only hidden_size / num_attention_heads = {config.head_size} "
            "is supported"
        )
    return config


def rotary_base(stored: dict, path: Path) -> dict:
    """``rope_theta`` where transformers 5 keeps it, one level down; empty where the file has it at the top.

    Raises:
        UserError: the rotary positions are scaled.
    """
    for key in ("rope_scaling", "rope_parameters"):
        rope = stored.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {key} is {rope!r}; expected null or an object")
        for kind in (rope.get("rope_type"), rope.get("type")):
            if kind not in (None, "default"):
                raise UserError(f"{path}: {key} asks for {kind!r} rotary positions; only 'default' is supported")
    return {key: value for key, value in (stored.get("rope_parameters") or {}).items() if key == "rope_theta"}


def shape_settings(stored: dict, path: Path) -> dict:
    """The arguments of :class:`LlamaConfig` in the settings ``stored`` at ``path``.

    Raises:
        UserError: a setting is missing or of a wrong type (named in the message).
    """
    shape = {field.name: field for field in fields(LlamaConfig)}
    missing = [key for key, ours in CONFIG_KEYS.items() if key not in stored and shape[ours].default is MISSING]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; a LLaMA's config.json has them all")
    for key, ours in CONFIG_KEYS.items():
        kind = shape[ours].type
        if key in stored and type(stored[key]) not in ((int, float) if kind is float else (kind,)):
            raise UserError(f"{path}: {key} is {stored[key]!r}; expected {kind.__name__}")
    return {ours: stored[key] for key, ours in CONFIG_KEYS.items() if key in stored}


def fingerprint(llama: Llama) -> str:
    """16 hex digits that tell these weights from others of the same shape, the same in every dtype down to bf16.

    Reads the final norm and one row of each layer's matrices: enough to tell models apart, cheap at any size.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(llama.named_parameters()):
        row = parameter if parameter.dim() == 1 else parameter[0]
        digest.update(name.encode() + row.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def our_name(name: str) -> str:
    """Hugging Face's tensor name in Meta's words; a name of neither is returned as it is."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        index, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"layers.{index}.{LAYER_NAMES.get(rest, rest)}.{kind}"
    return f"{OUTER_NAMES.get(stem, stem)}.{kind}"


def their_name(name: str) -> str:
    """The inverse of :func:`our_name`."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("layers."):
        _, index, rest = stem.split(".", 2)
        return f"model.layers.{index}.{next(t for t, o in LAYER_NAMES.items() if o == rest)}.{kind}"
    return f"{next(t for t, o in OUTER_NAMES.items() if o == stem)}.{kind}"


def pairs_from_halves(weight: Tensor, head_size: int) -> Tensor:
    """Reorder query or key rows (out, in) or (out,) from Hugging Face's rotary halves to Meta's rotary pairs."""
    return weight.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).flatten(0, 2)


def halves_from_pairs(weight: Tensor, head_size: int) -> Tensor:
    """The inverse of :func:`pairs_from_halves`."""
    return weight.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2)


def check_tensors(found: dict[str, Tensor], expected: dict[str, torch.Size], where: str | Path) -> None:
    """Refuse missing, unexpected and misshapen tensors, naming the first of each kind.

    Raises:
        UserError: the tensors in ``found`` are not exactly those ``expected``.
    """
    problems = []
    for kind, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {kind} (first: {min(names)})")
    for name in sorted(found.keys() & expected.keys()):
        if found[name].shape != expected[name]:
            problems.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name])}")
            break
    if problems:
        raise UserError(f"the tensors in {where} do not fit this model: {'; '.join(problems)}")
