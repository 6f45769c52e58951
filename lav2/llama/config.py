"""The shape of a LLaMA."""

from dataclasses import dataclass

from lav2.errors import UserError


@dataclass(frozen=True)
class LlamaConfig:
    """What defines a LLaMA besides its weights.

    Sizes are counts of elements; ``rope_theta`` is the base of the rotary frequencies; ``max_length`` is the longest
    sequence in tokens. ``num_kv_heads`` smaller than ``num_heads`` means grouped-query attention.
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

    def __post_init__(self):
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
