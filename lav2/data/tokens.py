"""From a rendered conversation to tokens and labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lav2.data.templates import Segment

IGNORE = -100  # the label of a token that is not supervised; what torch's cross entropy ignores
PAD = 0  # fills a batch on the right: with causal attention no real token sees it and its label is IGNORE, so any
# valid token id serves (LLaMA's own pad id is -1, which no embedding has)


class NoRoom(ValueError):
    """The prompt alone fills the sequence, so that no token of the response could be supervised."""


@dataclass
class Sample:
    """One encoded sample: ``tokens`` (length,) int32, of which those ``supervised`` (length,) bool are in the loss.

    ``truncated`` counts the supervised tokens (each response's end included) that did not fit and were cut on the
    right, ``lost_turns`` the responses of which nothing is left. ``features`` (tokens, width), if any, are the frozen
    encoder's features of the sample's image. ``index`` is its place among the :class:`Samples`, if it is of any.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    truncated: int = 0
    lost_turns: int = 0
    features: Tensor | None = None
    index: int = -1

    @property
    def labels(self) -> np.ndarray:
        """``labels[i]`` is the label for ``tokens[i]``: the shift by one token belongs to the loss."""
        return np.where(self.supervised, self.tokens, IGNORE)

    @property
    def prompt_length(self) -> int:
        """The number of tokens before the first supervised one."""
        return int(self.supervised.argmax())


def encode(tokenizer, segments: Sequence[Segment], max_length: int, prefix: Sequence[int] = ()) -> Sample:
    """Encode what :meth:`Template.render` gave into at most ``max_length`` tokens.

    Segments are encoded by themselves and concatenated, so the labels follow from the segments' lengths and a prompt
    has the very tokens it has in generation. (The authors' V1 code encodes the joined text; with SentencePiece's dummy
    prefix our response starts with a word-start piece instead.) What comes after the last supervised token that fits
    is left out: no loss depends on it. A ``prefix`` (:func:`lav2.data.slots.image_prefix`) takes the place of BOS.

    Raises:
        NoRoom: the first prompt leaves no room for a single token of its response.
    """
    tokens: list[int] = list(prefix)
    responses: list[tuple[int, int]] = []  # from, to
    for segment in segments:
        start = len(tokens)
        tokens += _encode_segment(tokenizer, replace(segment, bos=False) if prefix else segment)
        if segment.supervised:
            if responses and responses[-1][1] == start:  # what ends an answer is a part of it
                start, _ = responses.pop()
            responses.append((start, len(tokens)))
    fitting = [(start, min(end, max_length)) for start, end in responses if start < max_length]
    if not fitting:
        raise NoRoom(f"the prompt has {responses[0][0]} tokens, max_length is {max_length}")
    supervised = np.zeros(fitting[-1][1], dtype=bool)
    for start, end in fitting:
        supervised[start:end] = True
    return Sample(
        np.array(tokens[: len(supervised)], dtype=np.int32),
        supervised,
        truncated=sum(end - start for start, end in responses) - sum(end - start for start, end in fitting),
        lost_turns=len(responses) - len(fitting),
    )


def encode_prompt(tokenizer, segments: Sequence[Segment], prefix: Sequence[int] = ()) -> list[int]:
    """The tokens of a conversation that ends with an open answer, as they are in training; see :func:`encode`."""
    tokens = list(prefix)
    for segment in segments:
        tokens += _encode_segment(tokenizer, replace(segment, bos=False) if prefix else segment)
    return tokens


@lru_cache(maxsize=16)  # most captions share one prompt, which is longer than they are
def _encode_segment(tokenizer, segment: Segment) -> tuple[int, ...]:
    # A tokenizer that puts a space before every text needs none from the template
    text = segment.text.removeprefix(" ") if tokenizer.adds_space else segment.text
    return tuple(tokenizer.encode(text, bos=segment.bos, eos=segment.eos, special=segment.control))


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Stack samples, padded on the right, into a batch.

    Returns ``tokens`` (batch, length) and ``labels`` (batch, length), both int64; ``lengths`` (batch,) int64, the
    count of real tokens; ``indices`` (batch,) int64, the samples' places in their data set; if any of the samples
    carries them, ``features`` (batch, tokens, width) float32, zero for samples without; and, only if some carry them
    and some do not, ``has_image`` (batch,) bool.
    """
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    shape = len(samples), int(lengths.max())
    tokens = torch.full(shape, PAD)
    labels = torch.full(shape, IGNORE)
    for row, sample in enumerate(samples):
        tokens[row, : lengths[row]] = torch.as_tensor(sample.tokens)
        labels[row, : lengths[row]] = torch.as_tensor(sample.labels)
    indices = torch.tensor([sample.index for sample in samples])
    batch = {"tokens": tokens, "labels": labels, "lengths": lengths, "indices": indices}
    seen = [sample.features for sample in samples if sample.features is not None]
    if seen:
        none = torch.zeros_like(seen[0])
        rows = [none if sample.features is None else sample.features for sample in samples]
        batch["features"] = torch.stack(rows).float()
    if 0 < len(seen) < len(samples):
        batch["has_image"] = torch.tensor([sample.features is not None for sample in samples])
    return batch


class Samples(Dataset):
    """Encoded samples, kept in flat arrays so that millions of tokens cost five bytes each.

    Args:
        samples: what :func:`encode` returned.
        images: for each sample the path of its image or None; default: none has an image.
        features: a mapping from such a path to the image's features (tokens, width), or None to go without.
        places: for each sample its place in the data files, for messages.
    """

    def __init__(
        self,
        samples: list[Sample],
        images: Sequence[Path | None] | None = None,
        features=None,
        places: Sequence[str] = (),
    ):
        self.lengths = np.array([len(sample.tokens) for sample in samples], dtype=np.int64)
        self.truncated = np.array([sample.truncated for sample in samples], dtype=np.int64)
        self.lost_turns = np.array([sample.lost_turns for sample in samples], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.concatenate([np.empty(0, np.int32), *(sample.tokens for sample in samples)])
        self.supervised = np.concatenate([np.empty(0, bool), *(sample.supervised for sample in samples)])
        self.images = [None] * len(samples) if images is None else list(images)
        self.features = features
        self.places = list(places)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        end = self.ends[index]
        span = slice(end - self.lengths[index], end)
        image = self.images[index]
        features = None if self.features is None or image is None else self.features[image]
        truncated, lost_turns = int(self.truncated[index]), int(self.lost_turns[index])
        return Sample(self.tokens[span], self.supervised[span], truncated, lost_turns, features, int(index))
