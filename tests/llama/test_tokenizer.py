"""Tokenizers from every kind of file, against the libraries that define them."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor

from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig, Tokenizer, load_llama, load_tokenizer, save_llama
from tests.llama.gguf_files import SHAPE, sentencepiece_settings, write_gguf

EMBEDDED = Path(__file__).parents[2] / "lav2" / "demo" / "weights" / "llama"
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_start|>"]
TEXTS = [
    "",
    " ",
    "Describe the image in detail.",
    "  two  spaces,\ttabs and\r\nlines\n\n\n 1. end   ",
    "It's 1234567 and 3.14, they'LL say I'm",
    "naïve café, 漢字 かな 한국어 🙂, ½ x² ٣",
    "<|im_start|>user\nhi<|eot_id|><|end_of_text|> <s> </s> <unk> ▁x",
    "def f(x):\n    return x**2 != {'y': [0]}",
    "aaa aaaaaaaaaaaaaaaaaaaaaaaaaaa \x00\x7f",
]


@pytest.fixture(scope="module")
def texts(request):
    """Hard texts and, where real data are, 175 instructions with their answers."""
    try:
        folder = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        return TEXTS
    samples = json.loads((folder / "instructions" / "alpaca_gpt4_700.json").read_text())
    return TEXTS + [text for sample in samples[::4] for text in sample.values()]


# tokenizer.json ------------------------------------------------------------------------------------------------------


def train_byte_pairs(texts):
    """A small byte-level vocabulary, trained by the package tokenizers; its control tokens come first."""
    package = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def byte_pairs():
    return train_byte_pairs([*TEXTS, (EMBEDDED.parent / "README.md").read_text()])


@pytest.fixture
def folder(byte_pairs, tmp_path):
    """A model folder with a tokenizer.json and a tokenizer_config.json."""
    byte_pairs.save(str(tmp_path / "tokenizer.json"))
    tell(tmp_path / "tokenizer_config.json", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return tmp_path


def tell(path, **settings):
    path.write_text(json.dumps(settings))


def test_a_tokenizer_json_agrees_with_transformers(folder, texts):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = load_tokenizer(folder)
    for special in (True, False):
        for text in texts:
            ids = ours.encode(text, bos=False, special=special)
            assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=not special), text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_control_tokens_in_a_text_are_only_read_when_asked(folder):
    tokenizer = load_tokenizer(folder)
    text = "<|im_start|>user\nhi<|eot_id|>"
    plain, special = (tokenizer.encode(text, bos=False, special=special) for special in (False, True))
    assert special[0] == 3 and special[-1] == 2 and tokenizer.decode(special) == "user\nhi"
    assert not set(plain) & {0, 1, 2, 3} and tokenizer.decode(plain) == text
    assert tokenizer.encode(text, bos=False) == plain  # reading them once changes nothing
    assert tokenizer.token_id("<|eot_id|>") == 2 and tokenizer.token_id("<eot>") is None
    assert not tokenizer.adds_space


def test_what_a_tokenizer_json_would_add_or_cut_is_left_out(byte_pairs, folder):
    stored = json.loads(byte_pairs.to_str())
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": CONTROL[0],
    }
    tell(folder / "tokenizer.json", **stored)
    assert load_tokenizer(folder).encode(TEXTS[3], bos=False) == byte_pairs.encode(TEXTS[3]).ids


ENDS = [
    # tokenizer_config.json, generation_config.json, config.json → bos, eos, stop, pad, whether BOS is added
    ({"bos_token": CONTROL[0], "eos_token": {"content": CONTROL[2]}}, {}, {}, (0, 2, (2,), 2, False)),
    ({"bos_token": CONTROL[0], "eos_token": CONTROL[2], "add_bos_token": True}, {}, {}, (0, 2, (2,), 2, True)),
    ({"eos_token": CONTROL[2], "pad_token": CONTROL[3]}, {"eos_token_id": [1, 2, 3]}, {}, (2, 2, (2, 1, 3), 3, False)),
    ({"eos_token": None}, {"bos_token_id": 0, "eos_token_id": [1, 2]}, {"eos_token_id": 3}, (0, 1, (1, 2), 1, False)),
    ({}, {}, {"bos_token_id": 0, "eos_token_id": 3}, (0, 3, (3,), 3, False)),
    ({"add_bos_token": True}, {}, {"eos_token_id": 3}, (3, 3, (3,), 3, False)),
]


@pytest.mark.parametrize(("names", "generation", "model", "expected"), ENDS)
def test_the_files_beside_tell_what_ends_a_text(folder, names, generation, model, expected):
    tell(folder / "tokenizer_config.json", **names)
    tell(folder / "generation_config.json", **generation)
    tell(folder / "config.json", **model)
    found = load_tokenizer(folder)
    assert (found.bos_id, found.eos_id, found.stop_ids, found.pad_id, found.add_bos) == expected
    ids = found.encode("a red star", bos=False)
    assert found.encode("a red star", eos=True) == [found.bos_id] * found.add_bos + ids + [found.eos_id]


def test_bos_is_added_where_the_tokenizer_adds_it(byte_pairs, folder):
    package = sys.modules["tokenizers"]
    copy = package.Tokenizer.from_str(byte_pairs.to_str())
    copy.post_processor = package.processors.TemplateProcessing(
        single=f"{CONTROL[0]} $A", special_tokens=[(CONTROL[0], 0)]
    )
    copy.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("a") == copy.encode("a").ids
    assert load_tokenizer(folder).encode("a", bos=False) == copy.encode("a").ids[1:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "<html>", "tokenizer.json is no tokenizer that the package tokenizers reads"),
        ("tokenizer_config.json", "[", "tokenizer_config.json holds no JSON object"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json holds no JSON object"),
        ("tokenizer_config.json", '{"eos_token": "<end>"}', "has no token '<end>', which eos_token in"),
        ("tokenizer_config.json", "{}", "nothing says which token of .*tokenizer.json ends a text"),
    ],
)
def test_a_damaged_tokenizer_json_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


# SentencePiece -------------------------------------------------------------------------------------------------------


def small_llama(vocab_size: int) -> Llama:
    return Llama(type(SHAPE)(**vars(SHAPE) | {"vocab_size": vocab_size, "num_layers": 1})).reset_parameters()


@pytest.mark.parametrize("vocabulary", ["embedded", "llama"])
def test_sentencepiece_in_a_gguf_file_agrees_with_its_file(vocabulary, texts, tmp_path, request):
    path = EMBEDDED / "tokenizer.model"
    if vocabulary == "llama":
        path = tmp_path / "tokenizer.model"
        shutil.copy(request.getfixturevalue("real_data") / "tokenizer" / "llama_tokenizer.model", path)
    theirs = SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer(
        write_gguf(tmp_path / "a.gguf", small_llama(theirs.vocab_size()), "F16", sentencepiece_settings(path))
    )
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 2, theirs.vocab_size())
    assert ours.encode("A star.", eos=True) == [1, *theirs.encode("A star."), 2]
    for text in texts:
        ids = ours.encode(text, bos=False)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids)


def test_control_tokens_of_a_sentencepiece_vocabulary(tmp_path):
    """Chat models add theirs to LLaMA's; segments are encoded one by one, as llama.cpp does."""
    settings = sentencepiece_settings(EMBEDDED / "tokenizer.model")
    for key, value in (("tokens", "<|im_end|>"), ("scores", 0.0), ("token_type", 3)):
        settings[f"tokenizer.ggml.{key}"].append(value)
    tokenizer = Tokenizer(write_gguf(tmp_path / "a.gguf", small_llama(97), settings=settings))
    end = tokenizer.vocab_size - 1
    assert tokenizer.token_id("<|im_end|>") == end
    star, circle = tokenizer.encode("A star.", bos=False), tokenizer.encode(" a circle", bos=False)
    text = "A star.<|im_end|> a circle"
    assert tokenizer.encode(text, special=True) == [1, *star, end, *circle]
    plain = tokenizer.encode(text)
    assert end not in plain and tokenizer.decode(plain) == text


@pytest.mark.parametrize("added", [True, False])
def test_whether_a_space_is_added_is_told(added, tmp_path):
    settings = sentencepiece_settings(EMBEDDED / "tokenizer.model") | {"tokenizer.ggml.add_space_prefix": added}
    assert Tokenizer(write_gguf(tmp_path / "a.gguf", small_llama(97), settings=settings)).adds_space == added


def test_a_tokenizer_model_of_another_kind_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match="tokenizer.model is no SentencePiece model: .*LLaMA 3"):
        load_tokenizer(tmp_path)


# byte pairs in a GGUF file -------------------------------------------------------------------------------------------


def byte_pair_settings(byte_pairs, **changes) -> dict:
    """The GGUF settings of a byte-level vocabulary."""
    ids = byte_pairs.get_vocab()
    model = json.loads(byte_pairs.to_str())["model"]
    settings = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": sorted(ids, key=ids.get),
        "token_type": [3] * len(CONTROL) + [1] * (len(ids) - len(CONTROL)),
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "eot_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in settings.items() if value is not None}


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe"])
def test_byte_pairs_in_a_gguf_file_agree_with_transformers(byte_pairs, texts, tmp_path, split):
    """transformers knows these two ways to split words; SmolLM2's is checked in test_smollm2.py."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    settings = byte_pair_settings(byte_pairs, pre=split)
    path = write_gguf(tmp_path / "a.gguf", small_llama(byte_pairs.get_vocab_size()), settings=settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    ours = Tokenizer(path)
    for special in (True, False):
        for text in texts:
            ids = ours.encode(text, bos=False, special=special)
            assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=not special), text
            assert special or ours.decode(ids) == text
    assert (ours.stop_ids, ours.add_bos) == ((1, 2), split == "llama-bpe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "has a tokenizer of the kind 'bert'; only 'llama' and 'gpt2' are read"),
        ({"model": None}, "has a tokenizer of the kind None"),
        ({"pre": "qwen2"}, "splits words as 'qwen2'; only gpt-2, smollm, llama-bpe are read"),
        ({"pre": None}, "splits words as None"),
        ({"merges": None}, "lacks tokenizer.ggml.merges"),
        ({"eos_token_id": None}, "lacks tokenizer.ggml.eos_token_id"),
        ({"merges": ["qq qq"]}, "tokenizer.ggml.merges do not fit"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length"),
        ({"model": "llama"}, "lacks tokenizer.ggml.scores"),
    ],
    ids=str,
)
def test_what_cannot_be_rebuilt_is_named(byte_pairs, tmp_path, changes, message):
    path = write_gguf(tmp_path / "a.gguf", small_llama(97), settings=byte_pair_settings(byte_pairs, **changes))
    with pytest.raises(UserError, match=message):
        Tokenizer(path)


# whatever the file ---------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_for_a_tokenizer(folder):
    assert load_tokenizer(folder).path == folder / "tokenizer.json"
    shutil.copy(EMBEDDED / "tokenizer.model", folder)
    assert load_tokenizer(folder).path == folder / "tokenizer.model"


def test_metas_folders_share_the_tokenizer_above_them(tmp_path):
    for name in ("7B", "other"):
        (tmp_path / name).mkdir()
    shared = Path(shutil.copy(EMBEDDED / "tokenizer.model", tmp_path))
    (tmp_path / "7B" / "params.json").write_text("{}")
    assert load_tokenizer(tmp_path / "7B").path == shared
    own = Path(shutil.copy(shared, tmp_path / "7B"))
    assert load_tokenizer(tmp_path / "7B").path == own
    with pytest.raises(UserError, match="no tokenizer at"):  # a folder of another kind has its own
        load_tokenizer(tmp_path / "other")


def test_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no tokenizer at {tmp_path / 'tokenizer.model'}"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_vocabulary_is_named(folder):
    size = load_tokenizer(folder).vocab_size
    assert size == 600 and load_tokenizer(folder, size).vocab_size == size
    with pytest.raises(UserError, match="of another vocabulary: it has 600 tokens, the model knows 599"):
        load_tokenizer(folder, 599)


@pytest.mark.parametrize("file", ["tokenizer.json", "a.gguf"])
def test_a_missing_package_is_named(byte_pairs, folder, monkeypatch, file):
    write_gguf(folder / "a.gguf", small_llama(97), settings=byte_pair_settings(byte_pairs))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=rf'{file} needs the package tokenizers: pip install -e "\.\[gguf\]"'):
        Tokenizer(folder / file)


def test_a_model_is_saved_with_its_tokenizer_json(folder, tmp_path):
    tell(folder / "generation_config.json", eos_token_id=[1, 2])
    known = load_tokenizer(folder)
    save_llama(Llama(LlamaConfig(known.vocab_size, 16, 1, 2, 2, 16)), known.path, tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.path == tmp_path / "saved" / "tokenizer.json" and saved.stop_ids == known.stop_ids == (1, 2)
    assert [saved.encode(text) for text in TEXTS] == [known.encode(text) for text in TEXTS]


def test_the_embedded_llama_as_a_gguf_file_is_the_same_model(tmp_path):
    settings = sentencepiece_settings(EMBEDDED / "tokenizer.model")
    path = write_gguf(tmp_path / "demo.gguf", load_llama(EMBEDDED), "F16", settings)
    tokenizer, folders = load_tokenizer(path), load_tokenizer(EMBEDDED)
    tokens = torch.tensor([folders.encode("There is a small red circle above a star.")])
    assert tokens.tolist() == [tokenizer.encode("There is a small red circle above a star.")]
    assert np.allclose(load_llama(path)(tokens), load_llama(EMBEDDED)(tokens), atol=1e-3)
