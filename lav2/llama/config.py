"""The shape of a LLaMA."""

from collections.abc import Mapping
from dataclasses import dataclass

from lav2.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are slowed so that a model reads longer sequences than it was first trained on.

    ``factor`` alone divides every frequency: linear interpolation of positions. With the other three it is LLaMA 3.1's
    rule: pairs that turn fewer than ``low_frequency_factor`` times within ``original_max_length`` tokens are slowed by
    ``factor``, pairs that turn more than ``high_frequency_factor`` times keep their pace, those between are blended.
    """

    factor: float
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    original_max_length: int | None = None

    def __post_init__(self):
        if self.factor < 1:
            raise UserError(f"rope_scaling.factor is {self.factor}; it must be at least 1")
        by_frequency = (self.low_frequency_factor, self.high_frequency_factor, self.original_max_length)
        if by_frequency.count(None) not in (0, 3):
            raise UserError(
                "rope_scaling needs low_frequency_factor, high_frequency_factor and original_max_length together, "
                "or none of them"
            )
        if None not in by_frequency and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UserError(
                f"rope_scaling.low_frequency_factor is {self.low_frequency_factor}; it must be above 0 and below "
                f"high_frequency_factor, {self.high_frequency_factor}"
            )


@dataclass(frozen=True)
class LlamaConfig:
    """What defines a LLaMA besides its weights.

    Sizes are counts of elements; ``rope_theta`` is the base of the rotary frequencies, ``rope_scaling`` slows them (a
    mapping, as JSON stores it, will do); ``max_length`` is the longest sequence in tokens. ``num_kv_heads`` smaller
    than ``num_heads`` means grouped-query attention.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_length: int = 2048
    tie_embeddings: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "max_length",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"llama.{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads or self.head_size % 2:
            raise UserError(
                f"llama.hidden_size {self.hidden_size} must be an even multiple of llama.num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"llama.num_heads {self.num_heads} must be a multiple of llama.num_kv_heads {self.num_kv_heads}"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads
