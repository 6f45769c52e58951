"""What the paper leaves open, as values with a default (V2 paper, sec 3-4)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lav2.errors import UserError
from lav2.llama import LlamaConfig

CHOICES = {
    "gate": ("per_head", "scalar"),
    "gate_activation": ("tanh", "none"),
    "scale": ("output", "input", "none"),
    "norms": ("all", "blocks", "none"),
    "prompt_projection": ("tuned", "frozen"),
    "kind": ("queries", "linear_pooled", "linear_patches"),
}


@dataclass(frozen=True)
class ProjectorConfig:
    """The visual projector: encoder features → visual prompts (sec 4.3; the paper does not specify it).

    ``queries``: learned queries read the projected patch tokens through ``blocks`` transformer blocks of ``width``
    (V1's captioner; with 20 queries and 7B's width 8.8M parameters, which make the paper's 14M). ``linear_patches`` and
    ``linear_pooled`` map every patch, or their mean, straight to a prompt.
    """

    kind: str = "queries"
    width: int = 512
    blocks: int = 2
    heads: int = 16


@dataclass(frozen=True)
class AdapterConfig:
    """LLaMA-Adapter V2.

    Args:
        visual_layers: K, the first layers, which read visual prompts (sec 4.3).
        visual_length: the number of visual prompts (for projector ``queries``).
        prompt_layers: L, the last layers, which read adaptation prompts; ``None`` is the paper's N - 1.
        prompt_length: the number of adaptation prompts a layer.
        gate: one gate per head, or one scalar a layer.
        gate_activation: ``tanh(g)``, or ``g`` itself (``none``).
        bias: a trainable bias on all seven linears of every block (sec 4.1, Eq. 1).
        scale: a trainable scale on the same linears: on their output, ``y = s · (W x + b)`` (Eq. 1), on their input,
            ``y = W (s · x) + b`` (the authors' 65B chat code), or none.
        norms: train all RMSNorm weights, those of the blocks only, or none.
        prompt_projection: whether prompts pass W_k and W_v with their scale and bias (``tuned``; then they fold),
            or the frozen ones alone (``frozen``; the authors' 7B code).
        projector: see :class:`ProjectorConfig`.
    """

    visual_layers: int = 1
    visual_length: int = 20
    prompt_layers: int | None = None
    prompt_length: int = 20
    gate: str = "per_head"
    gate_activation: str = "tanh"
    bias: bool = True
    scale: str = "output"
    norms: str = "all"
    prompt_projection: str = "tuned"
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdapterConfig":
        """Build from plain values, as they stand in YAML or JSON.

        Raises:
            UserError: a key is unknown, or ``projector`` is no mapping.
        """
        values = dict(values)
        projector = values.pop("projector", {})
        if not isinstance(projector, Mapping):
            names = ", ".join(f.name for f in fields(ProjectorConfig))
            raise UserError(f"adapter.projector is {projector!r}; it must be a mapping of {names}")
        for kind, given, known in (("adapter", values, cls), ("adapter.projector", projector, ProjectorConfig)):
            names = [f.name for f in fields(known)]
            if unknown := sorted(given.keys() - set(names)):
                raise UserError(f"{kind} has no setting {unknown[0]!r}; it has {', '.join(names)}")
        return cls(**values, projector=ProjectorConfig(**projector))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def last_layers(self, llama: LlamaConfig) -> int:
        """L, with the paper's N - 1 for ``None``."""
        return llama.num_layers - 1 if self.prompt_layers is None else self.prompt_layers

    def wrong_values(self) -> list[str]:
        """Every setting whose value is wrong on any LLaMA, one line each."""
        found = []
        for owner, prefix in ((self, "adapter"), (self.projector, "adapter.projector")):
            for f in fields(owner):
                value = getattr(owner, f.name)
                if f.name in CHOICES and value not in CHOICES[f.name]:
                    found.append(f"{prefix}.{f.name} is {value!r}; choose one of {', '.join(CHOICES[f.name])}")
                if f.type is bool and not isinstance(value, bool):
                    found.append(f"{prefix}.{f.name} is {value!r}; it must be true or false")
                least = 1 if f.name == "width" else 0
                if f.type is int and (type(value) is not int or value < least):  # a bool is no count
                    found.append(f"{prefix}.{f.name} is {value!r}; it must be a whole number, {least} or more")
        if self.prompt_layers is not None and (type(self.prompt_layers) is not int or self.prompt_layers < 0):
            found.append(
                f"adapter.prompt_layers is {self.prompt_layers!r}; it must be a whole number, or null for N - 1"
            )
        return found

    def problems(self, llama: LlamaConfig) -> list[str]:
        """Everything that is wrong with this adapter on that LLaMA, one line each."""
        if found := self.wrong_values():
            return found
        layers, first, last = llama.num_layers, self.visual_layers, self.last_layers(llama)
        if last > layers:
            found.append(f"adapter.prompt_layers is {last!r}; this LLaMA has {layers} layers")
        elif first > layers - last:
            found.append(
                f"adapter.visual_layers K={first} and adapter.prompt_layers L={last} overlap in a LLaMA of "
                f"N={layers} layers: early fusion needs K <= N - L = {layers - last} (paper sec 4.3); lower one of them"
            )
        if last and not self.prompt_length:
            found.append("adapter.prompt_length is 0 while adapter.prompt_layers is not: set both to 0 for no prompts")
        if first and self.projector.kind == "queries":
            if not self.visual_length:
                found.append(
                    "adapter.visual_length is 0 while adapter.visual_layers is not: set both to 0 for no images"
                )
            if not self.projector.heads or self.projector.width % self.projector.heads:
                found.append(
                    f"adapter.projector.width {self.projector.width} must be a multiple of adapter.projector.heads "
                    f"{self.projector.heads}"
                )
        return found
