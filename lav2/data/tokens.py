"""From a prompt and a response to tokens and labels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORE = -100  # the label of a token that is not supervised; what torch's cross entropy ignores
PAD = 0  # fills a batch on the right: with causal attention no real token sees it and its label is IGNORE, so any
# valid token id serves (LLaMA's own pad id is -1, which no embedding has)


class NoRoom(ValueError):
    """The prompt alone fills the sequence, so that no token of the response could be supervised."""


@dataclass
class Sample:
    """One encoded sample: ``tokens`` = BOS, prompt, response, EOS; the first ``prompt_length`` are not supervised.

    ``truncated`` counts the response tokens (EOS included) that did not fit and were cut on the right.
    ``features`` (tokens, width), if any, are the frozen encoder's features of the sample's image.
    """

    tokens: list[int] | np.ndarray
    prompt_length: int
    truncated: int = 0
    features: Tensor | None = None

    @property
    def labels(self) -> list[int]:
        """``labels[i]`` is the label for ``tokens[i]``: the shift by one token belongs to the loss."""
        return [IGNORE] * self.prompt_length + list(self.tokens[self.prompt_length :])


def encode(tokenizer, prompt: str, response: str, max_length: int) -> Sample:
    """Encode one sample into at most ``max_length`` tokens.

    Prompt and response are encoded as separate segments and concatenated, so the labels follow from the segments'
    lengths and the prompt has the very tokens it has in generation. (The authors' V1 code encodes the joined text; with
    SentencePiece's dummy prefix our response starts with a word-start piece instead.)

    Raises:
        NoRoom: the prompt leaves no room for a single token of the response.
    """
    prompt_tokens = list(_encode_prompt(tokenizer, prompt))
    response_tokens = tokenizer.encode(response, bos=False, eos=True)
    room = max_length - len(prompt_tokens)
    if room < 1:
        raise NoRoom(f"the prompt has {len(prompt_tokens)} tokens, max_length is {max_length}")
    kept = response_tokens[:room]
    return Sample(prompt_tokens + kept, len(prompt_tokens), len(response_tokens) - len(kept))


@lru_cache(maxsize=16)  # most captions share one prompt, which is longer than they are
def _encode_prompt(tokenizer, prompt: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(prompt, bos=True))


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Stack samples, padded on the right, into a batch.

    Returns ``tokens`` (batch, length) and ``labels`` (batch, length), both int64; ``lengths`` (batch,) int64, the
    count of real tokens; and, if the samples carry them, ``features`` (batch, tokens, width) float32.
    """
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    shape = len(samples), int(lengths.max())
    tokens = torch.full(shape, PAD)
    labels = torch.full(shape, IGNORE)
    for row, sample in enumerate(samples):
        tokens[row, : lengths[row]] = torch.as_tensor(sample.tokens)
        labels[row, sample.prompt_length : lengths[row]] = torch.as_tensor(sample.tokens[sample.prompt_length :])
    batch = {"tokens": tokens, "labels": labels, "lengths": lengths}
    if samples[0].features is not None:
        batch["features"] = torch.stack([sample.features for sample in samples]).float()
    return batch


class Samples(Dataset):
    """Encoded samples, kept in one flat array so that millions of tokens cost four bytes each.

    Args:
        samples: what :func:`encode` returned.
        images: for each sample the path of its image, with ``features``, a mapping from such a path to the image's
            features (tokens, width); both None for samples without an image.
    """

    def __init__(self, samples: list[Sample], images: list | None = None, features=None):
        self.lengths = np.array([len(sample.tokens) for sample in samples], dtype=np.int64)
        self.prompt_lengths = np.array([sample.prompt_length for sample in samples], dtype=np.int64)
        self.truncated = np.array([sample.truncated for sample in samples], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.fromiter((token for sample in samples for token in sample.tokens), dtype=np.int32)
        self.images = images
        self.features = features

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        end = self.ends[index]
        tokens = self.tokens[end - self.lengths[index] : end]
        features = None if self.features is None else self.features[self.images[index]]
        return Sample(tokens, int(self.prompt_lengths[index]), int(self.truncated[index]), features)
