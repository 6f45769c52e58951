"""Hugging Face's LLaMA folder: ``config.json`` and weights, in one file or in shards that an index lists.

Its query and key rows stand in another order than Meta's (halves instead of pairs), hence the permutation.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.files import SafetensorsFile, TorchFile, read_json
from lav2.llama.hugging_face_config import config_json, read_config
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

# the file with the weights, or the one whose index lists their shards; the first that is there is read
WEIGHTS = {"model.safetensors": SafetensorsFile, "pytorch_model.bin": TorchFile}


class HuggingFaceCheckpoint(Checkpoint):
    """The LLaMA in a folder of Hugging Face's; the rotary frequencies of old conversions are left out.

    Raises:
        UserError: a file is missing or damaged, the index does not fit the shards, or another model is described.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = read_config(path)
        self.files: dict[str, tuple[SafetensorsFile | TorchFile, str]] = {  # our name → file and name there
            our_name(name): (file, name)
            for name, file in weight_files(path).items()
            if not name.endswith("rotary_emb.inv_freq")
        }
        if self.config.tie_embeddings and "output.weight" in self.files:
            if not torch.equal(self["output.weight"], self["tok_embeddings.weight"]):
                raise UserError(
                    f"{path / 'config.json'} has tie_word_embeddings, yet lm_head.weight and embed_tokens.weight are "
                    "stored and differ; set it to false to use both"
                )
            del self.files["output.weight"]
        self.shapes = {name: file.shapes[theirs] for name, (file, theirs) in self.files.items()}

    def __getitem__(self, name: str) -> Tensor:
        ((_, tensor),) = self.pieces(name)
        if name.endswith(("wq.weight", "wk.weight")):
            return pairs_from_halves(tensor, self.config.head_size)
        return tensor

    def pieces(self, name: str) -> list[tuple[Path, Tensor]]:
        file, theirs = self.files[name]
        return [(file.path, file[theirs])]


def weight_files(folder: Path) -> dict[str, SafetensorsFile | TorchFile]:
    """The folder's tensors by Hugging Face's names, each with the file it stands in.

    Raises:
        UserError: a file is missing or damaged, or does not hold what the index says.
    """
    for name, kind in WEIGHTS.items():
        if (folder / name).is_file():
            file = kind(folder / name)
            return dict.fromkeys(file.shapes, file)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return indexed_files(index, kind)
    raise UserError(
        f"no weights at {folder / 'model.safetensors'}: a LLaMA folder holds them in that file, in shards with "
        "model.safetensors.index.json, or likewise as pytorch_model.bin"
    )


def indexed_files(index: Path, kind: type) -> dict[str, SafetensorsFile | TorchFile]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; copy or download it again")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent / missing[0]} is missing: of the {len(names)} files in {index.name}, {len(missing)} are "
            "not there"
        )
    files = {name: kind(index.parent / name) for name in names}
    for tensor, name in places.items():
        if tensor not in files[name].shapes:
            raise UserError(
                f"{index.parent / name} does not hold {tensor}, which {index.name} puts there: "
                "they are files of different models"
            )
    return {tensor: files[name] for tensor, name in places.items()}


def save_llama(
    model: Llama, tokenizer_path: str | Path, folder: str | Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write ``model`` and its tokenizer to ``folder`` so that :func:`load_llama` and transformers can read them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(tokenizer_path)
    copy_tokenizer(tokenizer.path, folder)
    config = config_json(model.config)
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


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Copy a tokenizer's file into ``folder``, under the name by which its kind is known, and what stands beside it."""
    names = {"tokenizer.model": path}
    if path.suffix == ".json":
        beside = ("tokenizer_config.json", "generation_config.json")  # say what ends a text
        names = {"tokenizer.json": path} | {name: path.with_name(name) for name in beside}
    for name, source in names.items():
        if source.is_file() and source.resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)
