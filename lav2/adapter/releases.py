"""The adapters the authors released, told apart by the names and shapes in their files (LLaMA-Adapter V1 and V2).

Four kinds: V1's language adapter, V1's captioner, the multimodal 7B models (BIAS, LORA-BIAS, CAPTION) and the 65B
chat model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lav2.adapter.config import AdapterConfig, LoraConfig, ProjectorConfig
from lav2.errors import UserError

HEADS = 16  # of the visual blocks; the files do not say

# Parts of our names → the authors'
NAMES = {
    "instruction.": "",
    ".norms.": ".",
    ".prompts.gate.weight": ".attention.gate",
    ".prompts.gate.new_gate": ".attention.new_gate",
    "caption.projector.input.": "clip_proj.",
    "caption.projector.input_norm.": "clip_proj_norm.",
    "caption.projector.queries": "visual_query.weight",
    "caption.projector.blocks.": "visual_blocks.",
    "caption.projector.output.": "visual_proj.",
    "caption.projector.output_norm.": "visual_proj_norm.",
    ".self_attn.in_proj_": ".attn.qkv.",
    ".self_attn.out_proj.": ".attn.proj.",
    ".linear1.": ".mlp.fc1.",
    ".linear2.": ".mlp.fc2.",
}
ROOMS = dict.fromkeys(("wq", "wk", "wv", "wo"), "attention") | dict.fromkeys(("w1", "w2", "w3"), "feed_forward")
for name, room in ROOMS.items():
    NAMES |= {
        f".linears.{name}.bias": f".{room}.{name}.bias",
        f".linears.{name}.scale": f".{room}.{name}_scale",
        f".linears.{name}.lora.a": f".{room}.lora_{name}_l1.weight",
        f".linears.{name}.lora.b": f".{room}.lora_{name}_l2.weight",
    }

UNTUNED = {"bias": False, "scale": "none", "norms": "none"}  # V1: prompts alone


@dataclass(frozen=True)
class ReleasedFile:
    """The tensors in a released file, and what it declares of itself beside them."""

    path: str | Path
    tensors: Mapping[str, Tensor]
    declared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "ReleasedFile":
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"no released adapter at {path}") from None
        except Exception as error:  # a damaged archive can raise anything
            raise UserError(f"cannot read {path}, is it a released .pth file? {str(error).splitlines()[0]}") from None
        tensors, declared = loaded, {}
        if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
            tensors, declared = loaded["model"], loaded.get("config", {})
        if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UserError(f"{path} holds no dictionary of tensors; the released adapters do")
        # older files write llma. for llama.
        return cls(path, {name.replace("llma.", "llama.", 1): tensor for name, tensor in tensors.items()}, declared)

    def has(self, start: str = "", end: str = "") -> bool:
        return any(name.startswith(start) and name.endswith(end) for name in self.tensors)

    def size(self, name: str) -> tuple[int, int]:
        """The rows and columns of the matrix ``name``."""
        if name not in self.tensors or self.tensors[name].dim() != 2:
            raise UserError(f"{self.path} lacks the matrix {name}, which this kind of released adapter has")
        rows, columns = self.tensors[name].shape
        return rows, columns


@dataclass(frozen=True)
class Release:
    """What a released file holds and what it was trained with.

    Args:
        config: the adapter.
        template: see :class:`lav2.data.Template`.
        names: where the file's names are not those of :data:`NAMES`.
        query: its name for the prompts of all layers, (L · K, C), layer by layer.
        feature_width: of the image encoder's features; ``None`` for a model that does not see.
        channel_order: of the images it was trained on.
        caption_prompts: what asks it for a caption.
    """

    config: AdapterConfig
    template: str
    names: dict[str, str] = field(default_factory=dict)
    query: str = "adapter_query.weight"
    feature_width: int | None = None
    channel_order: str | None = None
    caption_prompts: tuple[str, ...] = ()

    def their_name(self, name: str) -> str:
        """The file's name for our parameter ``name``."""
        for ours, theirs in (NAMES | self.names).items():
            name = name.replace(ours, theirs)
        return name


def describe(file: ReleasedFile, prompt_length: int = 10, gate_activation: str | None = None) -> Release:
    """Which of the released adapters ``file`` is, by its names and shapes."""
    if file.has("llama."):
        return multimodal(file, gate_activation)
    if file.has("cap_adapter_query."):
        return captioner(file, gate_activation)
    if file.has("layers.", "_scale"):
        return chat()
    if file.has("adapter_query."):
        prompts = prompt_settings(file, "adapter_query.weight", prompt_length, gate_activation)
        return Release(AdapterConfig(**UNTUNED | prompts), template="alpaca")
    raise UserError(
        f"{file.path} is none of the released adapters, whose tensors are named adapter_query, cap_adapter_query, "
        f"llama.layers… or layers…_scale; it holds {min(file.tensors, default='nothing')}"
    )


def multimodal(file: ReleasedFile, gate_activation: str | None) -> Release:
    """BIAS-7B, LORA-BIAS-7B and CAPTION-7B: late fusion; biases but those of keys and values; LoRA, not for prompts."""
    ranks = [len(tensor) for name, tensor in file.tensors.items() if name.endswith("_l1.weight")]
    tuned = {
        "bias": file.has("llama.", ".bias"),
        "linears": ("wq", "wo", "w1", "w2", "w3"),
        "scale": "none",
        "norms": "all" if file.has("llama.", "norm.weight") else "none",
        "lora": LoraConfig(rank=ranks[0] if ranks else 0),
        "new_gate": file.has("llama.", ".new_gate"),
        "prompt_projection": "frozen",
    }
    return Release(
        AdapterConfig(**tuned | late_settings(file, "adapter_query.weight", gate_activation)),
        template="alpaca",
        names={"instruction.": "llama."},
        feature_width=file.size("clip_proj.weight")[1],
        channel_order="BGR",
        caption_prompts=("Generate caption of this image",),
    )


def captioner(file: ReleasedFile, gate_activation: str | None) -> Release:
    """V1's captioner, the 36.2 / 122.2 row of the V2 paper's Table 3."""
    query = "cap_adapter_query.weight"
    return Release(
        AdapterConfig(**UNTUNED | late_settings(file, query, gate_activation)),
        template="plain",
        names={".prompts.gate.weight": ".attention.cap_gate"},
        query=query,
        feature_width=file.size("clip_proj.weight")[1],
        channel_order="RGB",
        caption_prompts=("Generate caption of this image :",),
    )


def chat() -> Release:
    """The 65B chat model: scales on the inputs, biases and the norms of the blocks; no prompts, no images.

    It expects a whole conversation as its prompt.
    """
    config = AdapterConfig(
        visual_layers=0, prompt_layers=0, prompt_length=0, scale="input", norms="blocks", ownership="shared"
    )
    biases = {ours: theirs.replace(".bias", "_bias") for ours, theirs in NAMES.items() if theirs.endswith(".bias")}
    return Release(config, template="plain", names=biases)


def prompt_settings(file: ReleasedFile, query: str, length: int, gate_activation: str | None) -> dict[str, Any]:
    rows, _ = file.size(query)
    if length < 1 or rows % length:
        raise UserError(f"{query} in {file.path} has {rows} rows, which is no multiple of the prompt length {length}")
    scalar = any(name.endswith("gate") and tensor.dim() == 1 for name, tensor in file.tensors.items())
    return {
        "visual_layers": 0,
        "prompt_layers": rows // length,
        "prompt_length": length,
        "gate": "scalar" if scalar else "per_head",
        "gate_activation": gate_activation or ("none" if scalar else "tanh"),
        "ownership": "shared",
    }


def late_settings(file: ReleasedFile, query: str, gate_activation: str | None) -> dict[str, Any]:
    length, width = file.size("visual_query.weight")[0], file.size("clip_proj.weight")[0]
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("visual_blocks.")}
    return prompt_settings(file, query, length, gate_activation) | {
        "fusion": "late",
        "visual_length": length,
        "projector": ProjectorConfig(width=width, blocks=len(blocks), heads=HEADS),
    }
