"""The frozen language model and nothing else (V2 paper, sec 3)."""

from lav2.llama.checkpoint import Checkpoint
from lav2.llama.config import LlamaConfig, RopeScaling
from lav2.llama.hugging_face import save_llama
from lav2.llama.loading import load_llama, open_checkpoint
from lav2.llama.model import BlockHooks, KVCache, Llama
from lav2.llama.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "BlockHooks",
    "Checkpoint",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "Tokenizer",
    "load_llama",
    "load_tokenizer",
    "open_checkpoint",
    "save_llama",
]
