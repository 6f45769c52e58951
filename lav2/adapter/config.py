"""What the papers leave open, as values with a default (V2 paper, sec 3-4)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lav2.errors import UserError
from lav2.llama import LlamaConfig

LINEARS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")

CHOICES = {
    "fusion": ("early", "late", "tokens"),
    "gate": ("per_head", "scalar"),
    "gate_activation": ("tanh", "none"),
    "gate_init": ("zero", "random"),
    "scale": ("output", "input", "none"),
    "norms": ("all", "blocks", "none"),
    "prompt_projection": ("tuned", "frozen"),
    "ownership": ("disjoint", "shared"),
    "kind": ("queries", "linear_pooled", "linear_patches", "bottleneck", "mlp"),
    "routing": ("per_sample", "first_of_batch"),
}


@dataclass(frozen=True)
class ProjectorConfig:
    """The visual projector: encoder features → visual prompts (sec 4.3; the paper does not specify it).

    ``queries``: learned queries read the projected patch tokens through ``blocks`` transformer blocks of ``width``
    (V1's captioner; with 20 queries and 7B's width 8.8M parameters, which make the paper's 14M). ``linear_patches`` and
    ``linear_pooled`` map every patch, or their mean, straight to a prompt. ``bottleneck`` joins ``scales`` tokens of an
    image, the class tokens of so many layers, and squeezes them through ``width`` into one prompt (V1 paper, sec 3.3);
    ``mlp`` does so with each token by itself (LaVIN).
    """

    kind: str = "queries"
    width: int = 512
    blocks: int = 2
    heads: int = 16
    scales: int = 6


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of linear layers, ``W + scaling · B A``, instead of bias tuning or beside it (V2, sec 4.1).

    ``rank`` 0 is none; ``scaling`` is what others write as alpha / rank.
    """

    rank: int = 0
    scaling: float = 1.0
    linears: tuple[str, ...] = LINEARS


@dataclass(frozen=True)
class MixtureConfig:
    """Mixture-of-modality adapters in front of every attention (LaVIN); ``width`` 0 is none.

    They stand in the language model and, with ``vision_blocks``, in the image encoder, whose features then change as
    it trains and cannot be computed once. ``groups``, ``temperature`` and ``dropout``: see
    :class:`lav2.adapter.mixture.MixtureOfModality`. ``routing`` concerns the encoder: ``per_sample`` reads each image's
    own class token; ``first_of_batch`` is what the authors' code does, where the first image of a batch routes all.
    In a batch that mixes rows with an image and rows of text the first may be of text, whose blank picture then routes
    the images: in training and validation alone, because answers are given to the two kinds in batches of their own.
    """

    width: int = 0
    groups: int = 2
    temperature: float = 10.0
    dropout: float = 0.1
    vision_blocks: int = 0
    vision_width: int = 1024
    routing: str = "per_sample"


@dataclass(frozen=True)
class AdapterConfig:
    """LLaMA-Adapter V2, V1 and LaVIN, composed of the same parts.

    Args:
        fusion: ``early``: the first K layers read visual prompts of their own (V2, sec 4.3). ``late``: visual prompts
            are added to the adaptation prompts of the last L layers (V1's captioner, the released V2 models).
            ``tokens``: ``visual_length`` image tokens and a modality token stand before the text (LaVIN).
        visual_layers: K, the first layers, which read visual prompts (early fusion); 0 for none.
        visual_length: the number of visual prompts (for projector ``queries``).
        overlap: let K + L exceed N, so that some layers read both kinds of prompts; the paper keeps them apart.
        prompt_layers: L, the last layers, which read adaptation prompts; ``None`` is the paper's N - 1.
        prompt_length: the number of adaptation prompts a layer.
        gate: one gate per head, or one scalar a layer.
        gate_activation: ``tanh(g)``, or ``g`` itself (``none``).
        gate_init: gates start at ``zero``, so that training begins from the frozen model (V1, sec 3.2), or ``random``,
            from N(0, 1), which is there to be compared with.
        new_gate: a second factor a layer, one at the start (the released LORA models).
        bias: a trainable bias on the ``linears`` of every block (sec 4.1, Eq. 1).
        scale: a trainable scale on the same linears: on their output, ``y = s · (W x + b)`` (Eq. 1), on their input,
            ``y = W (s · x) + b`` (the authors' 65B chat code), or none.
        linears: the linears of a block that bias and scale tune.
        norms: train all RMSNorm weights, those of the blocks only, or none.
        prompt_projection: whether prompts pass W_k and W_v as tuned (with scale, bias and LoRA; then they fold),
            or the frozen ones alone (``frozen``; the authors' 7B code).
        ownership: ``disjoint``: captions train what sees, instructions train what speaks (V2, sec 4.2); ``shared``:
            every task trains all parameters (V1).
        projector: see :class:`ProjectorConfig`.
        lora: see :class:`LoraConfig`.
        mixture: see :class:`MixtureConfig`.
    """

    fusion: str = "early"
    visual_layers: int = 1
    visual_length: int = 20
    overlap: bool = False
    prompt_layers: int | None = None
    prompt_length: int = 20
    gate: str = "per_head"
    gate_activation: str = "tanh"
    gate_init: str = "zero"
    new_gate: bool = False
    bias: bool = True
    scale: str = "output"
    linears: tuple[str, ...] = LINEARS
    norms: str = "all"
    prompt_projection: str = "tuned"
    ownership: str = "disjoint"
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdapterConfig":
        """Build from plain values, as they stand in YAML or JSON.

        Raises:
            UserError: a key is unknown, or a section is no mapping.
        """
        return build(cls, values, "adapter")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def last_layers(self, llama: LlamaConfig) -> int:
        """L, with the paper's N - 1 for ``None``."""
        return llama.num_layers - 1 if self.prompt_layers is None else self.prompt_layers

    @property
    def sees(self) -> bool:
        """Whether there is a visual path."""
        return self.fusion != "early" or self.visual_layers > 0

    def wrong_values(self) -> list[str]:
        """Every setting whose value is wrong on any LLaMA, one line each."""
        found = [line for section, prefix in sections(self) for line in wrong_values(section, prefix)]
        if self.prompt_layers is not None and not is_count(self.prompt_layers, 0):
            found.append(
                f"adapter.prompt_layers is {self.prompt_layers!r}; it must be a whole number, or null for N - 1"
            )
        return found

    def problems(self, llama: LlamaConfig) -> list[str]:
        """Everything that is wrong with this adapter on that LLaMA, one line each."""
        if found := self.wrong_values():
            return found
        layers, last = llama.num_layers, self.last_layers(llama)
        if last > layers:
            found.append(
                f"adapter.prompt_layers is {last!r}; this LLaMA has {layers} layers: set it to {layers} or fewer, or "
                "choose an adapter of that size (for the embedded world adapter=world/v2, world/v1_caption, …)"
            )
        if last and not self.prompt_length:
            found.append("adapter.prompt_length is 0 while adapter.prompt_layers is not: set both to 0 for no prompts")
        if self.fusion == "early":
            found += self.early_problems(layers, last)
        elif self.visual_layers:
            found.append(
                f"adapter.visual_layers is {self.visual_layers} with adapter.fusion={self.fusion}; early fusion alone "
                "has layers that read visual prompts: set it to 0"
            )
        if self.fusion == "late":
            found += self.late_problems(last)
        found += self.mixture_problems(llama.hidden_size)
        if self.sees and self.projector.kind == "queries":
            heads = self.projector.heads
            if not self.visual_length:
                found.append("adapter.visual_length is 0; a model that sees has visual prompts")
            if not heads or self.projector.width % heads:
                found.append(
                    f"adapter.projector.width {self.projector.width} must be a multiple of adapter.projector.heads "
                    f"{heads}"
                )
        return found

    def early_problems(self, layers: int, last: int) -> list[str]:
        if self.visual_layers > layers:
            return [f"adapter.visual_layers is {self.visual_layers}; this LLaMA has {layers} layers"]
        if last <= layers < self.visual_layers + last and not self.overlap:
            return [
                f"adapter.visual_layers K={self.visual_layers} and adapter.prompt_layers L={last} overlap in a LLaMA "
                f"of N={layers} layers: early fusion needs K <= N - L = {layers - last} (paper sec 4.3); lower one of "
                "them, or set adapter.overlap=true"
            ]
        return []

    def late_problems(self, last: int) -> list[str]:
        found = []
        if not last:
            found.append("adapter.fusion=late adds what is seen to adaptation prompts, but adapter.prompt_layers is 0")
        if self.projector.kind in ("linear_patches", "mlp"):
            found.append(
                f"adapter.projector.kind={self.projector.kind} makes each patch a prompt of its own, which "
                "adapter.fusion=late cannot add to adaptation prompts; choose queries, linear_pooled or bottleneck"
            )
        if self.projector.kind == "queries" and self.visual_length not in (1, self.prompt_length):
            found.append(
                f"adapter.visual_length {self.visual_length} must equal adapter.prompt_length {self.prompt_length} "
                "with adapter.fusion=late, or be 1 and serve them all"
            )
        return found

    def mixture_problems(self, hidden_size: int) -> list[str]:
        mixture, found = self.mixture, []
        if mixture.width and self.fusion != "tokens":
            found.append(
                f"adapter.mixture.width is {mixture.width} with adapter.fusion={self.fusion}: its router reads the "
                "modality token, which only adapter.fusion=tokens has"
            )
        if mixture.vision_blocks and not mixture.width:
            found.append("adapter.mixture.vision_blocks is set while adapter.mixture.width is 0: set both or none")
        for name, size in (("mixture.width", mixture.width), ("mixture.vision_width", mixture.vision_width)):
            if mixture.width and (not mixture.groups or size % mixture.groups or hidden_size % mixture.groups):
                found.append(f"adapter.{name} {size} must be a multiple of adapter.mixture.groups {mixture.groups}")
        return found


NOTHING = AdapterConfig(visual_layers=0, prompt_layers=0, bias=False, scale="none", norms="none")  # the base as it is


def sections(config: AdapterConfig) -> Iterator[tuple[Any, str]]:
    """The config and the sections inside it, each with its name for messages."""
    yield config, "adapter"
    for f in fields(config):
        if hasattr(f.type, "__dataclass_fields__"):
            yield getattr(config, f.name), f"adapter.{f.name}"


def wrong_values(section: Any, prefix: str) -> Iterator[str]:
    """What is wrong with each value of one section in itself."""
    for f in fields(section):
        value = getattr(section, f.name)
        if f.name in CHOICES and value not in CHOICES[f.name]:
            yield f"{prefix}.{f.name} is {value!r}; choose one of {', '.join(CHOICES[f.name])}"
        if f.type is bool and not isinstance(value, bool):
            yield f"{prefix}.{f.name} is {value!r}; it must be true or false"
        least = 1 if prefix == "adapter.projector" and f.name in ("width", "scales") else 0
        if f.type is int and not is_count(value, least):
            yield f"{prefix}.{f.name} is {value!r}; it must be a whole number, {least} or more"
        if f.name == "dropout":
            if type(value) not in (int, float) or not 0 <= value < 1:
                yield f"{prefix}.dropout is {value!r}; it must be a fraction from 0 to below 1"
        elif f.type is float and (type(value) not in (int, float) or value <= 0):
            yield f"{prefix}.{f.name} is {value!r}; it must be a number above 0"
        if f.name == "linears" and (not isinstance(value, tuple) or set(value) - set(LINEARS)):
            yield f"{prefix}.linears is {value!r}; give a list of {', '.join(LINEARS)}"


def is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # a bool is no count


def build(kind: type, values: Any, name: str) -> Any:
    """A config dataclass from plain values: its sections from mappings, its tuples from lists."""
    known = {f.name: f.type for f in fields(kind)}
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {values!r}; it must be a mapping of {', '.join(known)}")
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    built = {}
    for key, value in values.items():
        if hasattr(known[key], "__dataclass_fields__"):
            value = build(known[key], value, f"{name}.{key}")
        built[key] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
