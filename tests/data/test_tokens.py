import random

import numpy as np
import pytest
import torch

from lav2.data.tokens import IGNORE, NoRoom, Samples, collate, encode
from lav2.llama.tokenizer import Tokenizer


def check(tokenizer, rng, alphabet, count):
    """Every response token is supervised exactly once, or counted as truncated; nothing else is supervised."""
    refused = truncated = 0
    for _ in range(count):
        prompt = "".join(rng.choices(alphabet, k=rng.randint(0, 60)))
        response = "".join(rng.choices(alphabet, k=rng.randint(0, 60)))
        prompt_tokens = tokenizer.encode(prompt, bos=True)
        response_tokens = tokenizer.encode(response, bos=False) + [tokenizer.eos_id]
        max_length = rng.randint(1, 120)
        try:
            sample = encode(tokenizer, prompt, response, max_length)
        except NoRoom:
            assert len(prompt_tokens) >= max_length
            refused += 1
            continue
        supervised = [label for label in sample.labels if label != IGNORE]
        assert supervised == response_tokens[: len(supervised)]
        assert len(supervised) + sample.truncated == len(response_tokens)
        assert len(supervised) >= 1
        assert sample.tokens == prompt_tokens + supervised
        assert len(sample.tokens) == len(sample.labels) <= max_length
        assert sample.truncated == 0 or len(sample.tokens) == max_length
        truncated += sample.truncated > 0
    assert refused and truncated and refused + truncated < count  # all three cases were met


ALPHABET = [*"abc   \n.,:#'é한🙂", "### Response:", "Red ", " circle", "</s>", "  ", "\t"]


def test_every_response_token_is_supervised_or_counted(tokenizer):
    check(tokenizer, random.Random(0), ALPHABET, 2000)


def test_every_response_token_is_supervised_or_counted_with_llamas_tokenizer(real_data):
    check(Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model"), random.Random(1), ALPHABET, 2000)


def test_prompt_has_the_tokens_it_has_in_generation(tokenizer):
    sample = encode(tokenizer, "### Response:", "A red circle.", 100)
    assert sample.tokens[: sample.prompt_length] == tokenizer.encode("### Response:")
    assert sample.tokens[0] == tokenizer.bos_id
    assert sample.tokens[-1] == sample.labels[-1] == tokenizer.eos_id
    assert tokenizer.decode(sample.tokens[sample.prompt_length :]) == "A red circle."


def test_collate_and_samples(tokenizer):
    responses = ["Here.", "The star is below the circle.", "A"]
    originals = [encode(tokenizer, "Where is it?", response, 64) for response in responses]
    features = {"x.png": torch.ones(2, 3, dtype=torch.float16)}
    samples = Samples(originals, ["x.png"] * 3, features)
    assert samples.lengths.tolist() == [len(sample.tokens) for sample in originals]
    batch = collate([samples[index] for index in range(3)])
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64
    assert batch["features"].shape == (3, 2, 3) and batch["features"].dtype == torch.float32
    for row, sample in enumerate(originals):
        length = batch["lengths"][row]
        assert batch["tokens"][row, :length].tolist() == sample.tokens
        assert batch["labels"][row, :length].tolist() == sample.labels
        assert (batch["labels"][row, length:] == IGNORE).all()
        assert (batch["tokens"][row, length:] >= 0).all()  # an embedding must have every id
    assert batch["tokens"].shape == (3, max(samples.lengths))
    assert "features" not in collate(originals)


def test_no_room_says_how_long_the_prompt_is(tokenizer):
    length = len(tokenizer.encode("red circle"))
    assert encode(tokenizer, "red circle", "star", length + 1).labels.count(IGNORE) == length
    with pytest.raises(NoRoom, match=f"{length} tokens, max_length is {length}"):
        encode(tokenizer, "red circle", "star", length)


def test_samples_are_compact(tokenizer):
    samples = Samples([encode(tokenizer, "red", "circle", 64)] * 1000)
    assert samples.tokens.dtype == np.int32 and samples.tokens.nbytes == 4 * samples.lengths.sum()
