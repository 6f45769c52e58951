"""The frozen language model and nothing else (V2 paper, sec 3)."""

from lav2.llama.config import LlamaConfig
from lav2.llama.loading import load_llama, save_llama
from lav2.llama.model import BlockHooks, KVCache, Llama
from lav2.llama.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "BlockHooks",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "Tokenizer",
    "load_llama",
    "load_tokenizer",
    "save_llama",
]
