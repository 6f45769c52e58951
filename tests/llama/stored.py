"""LLaMAs on disk, as transformers and as Meta store them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lav2.llama import Llama, LlamaConfig, save_llama

TOKENIZER = Path(__file__).parents[2] / "lav2" / "demo" / "weights" / "llama" / "tokenizer.model"

# what sets the generations apart, small: positions beyond 64 are where the scaled ones differ
GENERATIONS = {
    "llama1": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "llama2": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    "llama3": {
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "llama3.1": {
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}


def random_llama(generation: str, **changes):
    """A random LLaMA of transformers', far from uniform; ``changes`` are of its config."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    torch.manual_seed(0)
    settings = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    settings |= GENERATIONS[generation] | changes
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.12,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms that are all ones would hide a mix-up
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def save_theirs(model, folder: Path, form: str) -> Path:
    """Write transformers' ``model`` as one of the forms that such folders come in."""
    if form == "safetensors":
        model.save_pretrained(folder)
    elif form == "shards":
        model.save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    else:
        model.config.save_pretrained(folder)
        state = model.state_dict()
        torch.save(state, folder / "pytorch_model.bin")
        if form == "bin shards":
            (folder / "pytorch_model.bin").unlink()
            split_bin(state, folder)
    return folder


def split_bin(state: dict, folder: Path) -> None:
    names = sorted(state)
    places = {name: f"pytorch_model-0000{1 + (i > 11)}-of-00002.bin" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        torch.save({name: state[name] for name in names if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def save_meta(folder: Path, llama: Llama, ranks: int = 1, split_vocabulary: bool = False, **params) -> Path:
    """Write ``llama`` as Meta releases it: each rank's share in a file of its own.

    ``params`` are added to ``params.json``; the output head of a tied model is written out, as Meta does.
    """
    config = llama.config
    state = llama.state_dict()
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    folder.mkdir(exist_ok=True)
    for rank in range(ranks):
        share = {"rope.freqs": torch.ones(6)}
        for name, tensor in state.items():
            columns = name.endswith(("wo.weight", "w2.weight")) or ("embed" in name and not split_vocabulary)
            share[name] = tensor if tensor.dim() == 1 else tensor.chunk(ranks, int(columns))[rank].clone()
        torch.save(share, folder / f"consolidated.{rank:02d}.pth")
    params = {
        "dim": config.hidden_size,
        "multiple_of": 16,
        "n_heads": config.num_heads,
        "n_layers": config.num_layers,
        "norm_eps": config.norm_eps,
        "vocab_size": -1,
    } | params
    if config.num_kv_heads != config.num_heads:
        params["n_kv_heads"] = config.num_kv_heads
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def small_llama(**changes) -> Llama:
    """A random LLaMA of ours whose vocabulary is the demo's."""
    torch.manual_seed(0)
    shape = {"vocab_size": 640, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return Llama(LlamaConfig(**shape | {"intermediate_size": 80} | changes)).reset_parameters(std=0.3)


def save_shards(llama: Llama, folder: Path, count: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    """Write ``llama`` as a Hugging Face folder of ``count`` shards."""
    from safetensors.torch import save_file

    save_llama(llama, TOKENIZER, folder, dtype)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    size = math.ceil(len(names) / count)
    places = {name: f"model-{1 + i // size:05d}-of-{count:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def change_json(path: Path, **changes) -> None:
    """Set keys in a JSON file; a key set to ... is removed."""
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))
