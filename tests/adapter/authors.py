"""Files with the names and shapes of the authors' released adapters, and their forward pass written out.

The released files themselves cannot be had for a test; their names and shapes are known.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lav2.llama import Llama

ATTENTION, FEED_FORWARD = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")
TRUE = {"size": 4096, "layers": 32, "heads": 32, "inner": 11008, "last": 31, "length": 10}
TRUE_VISION = {"features": 768, "width": 768, "blocks": 8}
SMALL = {"size": 32, "layers": 4, "heads": 4, "inner": 48, "last": 3, "length": 3}
SMALL_VISION = {"features": 96, "width": 32, "blocks": 2}  # features as wide as the embedded world's

Shapes = dict[str, tuple[int, ...]]


def language(size, layers, heads, inner, last, length, per_head=True) -> Shapes:
    gate = (1, heads, 1, 1) if per_head else (1,)
    return {"adapter_query.weight": (last * length, size)} | {
        f"layers.{layer}.attention.gate": gate for layer in range(layers)
    }


def captioner(size, layers, heads, inner, last, length, features, width, blocks) -> Shapes:
    gates = {f"layers.{layer}.attention.cap_gate": (1, heads, 1, 1) for layer in range(layers - last, layers)}
    return {"cap_adapter_query.weight": (last * length, size)} | gates | seeing(size, length, features, width, blocks)


def multimodal(
    size, layers, heads, inner, last, length, features, width, blocks, bias=True, rank=0, prefix="llama."
) -> Shapes:
    shapes = {"adapter_query.weight": (last * length, size)} | seeing(size, length, features, width, blocks)
    for layer in range(layers):
        attention, feed_forward = f"{prefix}layers.{layer}.attention.", f"{prefix}layers.{layer}.feed_forward."
        shapes[f"{attention}gate"] = (1, heads, 1, 1)
        if bias:
            shapes |= {f"{attention}wq.bias": (size,), f"{attention}wo.bias": (size,)}
            shapes |= {f"{feed_forward}w1.bias": (inner,), f"{feed_forward}w3.bias": (inner,)}
            shapes[f"{feed_forward}w2.bias"] = (size,)
        shapes |= {f"{prefix}layers.{layer}.{norm}.weight": (size,) for norm in ("attention_norm", "ffn_norm")}
        if rank:
            shapes[f"{attention}new_gate"] = (1, 1, 1, 1)
            for name, (out, into) in linears(size, inner).items():
                room = attention if name in ATTENTION else feed_forward
                shapes |= {f"{room}lora_{name}_l1.weight": (rank, into), f"{room}lora_{name}_l2.weight": (out, rank)}
    return shapes | {f"{prefix}norm.weight": (size,)}


def chat(size, layers, inner, **_) -> Shapes:
    shapes = {}
    for layer in range(layers):
        for name, (out, into) in linears(size, inner).items():
            room = f"layers.{layer}.{'attention' if name in ATTENTION else 'feed_forward'}."
            shapes |= {f"{room}{name}_bias": (out,), f"{room}{name}_scale": (into,)}
        shapes |= {f"layers.{layer}.{norm}.weight": (size,) for norm in ("attention_norm", "ffn_norm")}
    return shapes


def seeing(size, length, features, width, blocks) -> Shapes:
    shapes = {"visual_query.weight": (length, width)}
    for name, shape in (("clip_proj", (width, features)), ("visual_proj", (size, width))):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {f"{name}_norm.weight": shape[:1], f"{name}_norm.bias": shape[:1]}
    with torch.device("meta"):
        block = timm_block(width).state_dict()
    return shapes | {
        f"visual_blocks.{index}.{name}": tuple(tensor.shape)
        for index in range(blocks)
        for name, tensor in block.items()
    }


def timm_block(width: int) -> Block:
    return Block(width, 16, mlp_ratio=4, qkv_bias=True, norm_layer=nn.LayerNorm)


def linears(size: int, inner: int) -> dict[str, tuple[int, int]]:
    """(out, in) of a block's linear layers."""
    return dict.fromkeys(ATTENTION, (size, size)) | {"w1": (inner, size), "w3": (inner, size), "w2": (size, inner)}


def fill(shapes: Shapes, seed: int = 5) -> dict[str, Tensor]:
    """Values as of a trained adapter: norms and scales about one, the rest about zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (1.0 if "norm" in name and name.endswith("weight") or name.endswith(("_scale", "new_gate")) else 0.0)
        + (1.0 if "query" in name else 0.3) * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


class Authors:
    """The authors' forward pass on one text, written out over a file's own tensors.

    Args:
        stored: the file's tensors, with ``llama.`` or no prefix.
        tanh: whether gates pass it.
    """

    def __init__(self, stored: dict[str, Tensor], llama: Llama, length: int, tanh: bool):
        self.stored = {name.removeprefix("llama."): tensor for name, tensor in stored.items()}
        self.llama, self.length, self.tanh = llama, length, tanh
        self.query = next((tensor for name, tensor in stored.items() if "adapter_query" in name), torch.zeros(0, 1))

    def logits(self, tokens: list[int], features: Tensor | None = None) -> Tensor:
        """(T, V), for features (S, F) of an image or none."""
        seen = 0 if features is None else self.see(features)
        layers = self.llama.layers
        first = len(layers) - len(self.query) // self.length
        x = self.llama.tok_embeddings.weight[tokens]
        for index in range(len(layers)):
            prompts = None
            if index >= first:
                prompts = self.query[(index - first) * self.length :][: self.length] + seen
            x = x + self.attend(index, self.norm(f"layers.{index}.attention_norm", x), prompts)
            normed = self.norm(f"layers.{index}.ffn_norm", x)
            inner = F.silu(self.linear(index, "w1", normed)) * self.linear(index, "w3", normed)
            x = x + self.linear(index, "w2", inner)
        return self.norm("norm", x) @ self.llama.output.weight.T

    def attend(self, index: int, x: Tensor, prompts: Tensor | None) -> Tensor:
        config = self.llama.config
        query, key, value = (self.linear(index, name, x) for name in ("wq", "wk", "wv"))
        outputs = []
        for head in range(config.num_heads):
            rows = slice(head * config.head_size, (head + 1) * config.head_size)
            q, k = self.turn(query[:, rows]), self.turn(key[:, rows])
            scores = q @ k.T / math.sqrt(config.head_size)
            later = torch.ones_like(scores).triu(1).bool()
            output = torch.softmax(scores.masked_fill(later, -math.inf), -1) @ value[:, rows]
            if prompts is not None:
                frozen = self.llama.layers[index].attention
                k, v = prompts @ frozen.wk.weight[rows].T, prompts @ frozen.wv.weight[rows].T
                answer = torch.softmax(q @ k.T / math.sqrt(config.head_size), -1) @ v
                output = output + self.gate(index, head) * answer
            outputs.append(output)
        return self.linear(index, "wo", torch.cat(outputs, -1))

    def gate(self, index: int, head: int) -> Tensor:
        prefix = f"layers.{index}.attention."
        gate = self.stored.get(f"{prefix}gate", self.stored.get(f"{prefix}cap_gate")).flatten()
        gate = gate[head % len(gate)]
        gate = torch.tanh(gate) if self.tanh else gate
        return gate * self.stored.get(f"{prefix}new_gate", torch.ones(1)).flatten()[0]

    def linear(self, index: int, name: str, x: Tensor) -> Tensor:
        room = "attention" if name in ATTENTION else "feed_forward"
        prefix = f"layers.{index}.{room}."
        x = x * self.stored.get(f"{prefix}{name}_scale", 1)
        y = x @ getattr(getattr(self.llama.layers[index], room), name).weight.T
        y = y + self.stored.get(f"{prefix}{name}.bias", 0) + self.stored.get(f"{prefix}{name}_bias", 0)
        if f"{prefix}lora_{name}_l1.weight" in self.stored:
            down, up = (self.stored[f"{prefix}lora_{name}_l{number}.weight"] for number in (1, 2))
            y = y + (x @ down.T) @ up.T
        return y

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.stored.get(f"{name}.weight", self.llama.get_parameter(f"{name}.weight"))
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.llama.config.norm_eps) * weight

    def turn(self, x: Tensor) -> Tensor:
        """Rotary positions in Meta's order: pairs of neighbours, turned by position · theta^(-2i / D)."""
        turned = torch.empty_like(x)
        for position in range(len(x)):
            for i in range(0, x.shape[1], 2):
                angle = position * self.llama.config.rope_theta ** (-i / x.shape[1])
                cos, sin = math.cos(angle), math.sin(angle)
                turned[position, i] = x[position, i] * cos - x[position, i + 1] * sin
                turned[position, i + 1] = x[position, i] * sin + x[position, i + 1] * cos
        return turned

    def see(self, features: Tensor) -> Tensor:
        """(S, F) → (K, C)."""
        x = self.layer_norm("clip_proj_norm", self.affine("clip_proj", features))
        x = torch.cat((self.stored["visual_query.weight"], x))[None]
        for block in self.blocks():
            x = block(x)
        return self.layer_norm("visual_proj_norm", self.affine("visual_proj", x[0, : self.length]))

    def blocks(self) -> Iterator[Block]:
        width = self.stored["visual_query.weight"].shape[1]
        for index in range(sum(name.endswith("attn.qkv.weight") for name in self.stored)):
            prefix = f"visual_blocks.{index}."
            block = timm_block(width)
            block.load_state_dict(
                {name.removeprefix(prefix): t for name, t in self.stored.items() if name.startswith(prefix)}
            )
            yield block.eval()

    def affine(self, name: str, x: Tensor) -> Tensor:
        return x @ self.stored[f"{name}.weight"].T + self.stored[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)
        return x * self.stored[f"{name}.weight"] + self.stored[f"{name}.bias"]
