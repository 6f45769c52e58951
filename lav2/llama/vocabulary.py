"""Vocabularies: the pieces of text that tokens stand for, read by SentencePiece or by Hugging Face's tokenizers.

Both kinds have ``size``, one more than the largest id; ``encode``, which with ``special`` reads the names of control
tokens in a text, such as ``<|im_end|>``, as those tokens; ``decode``, which makes no text of them; and ``token_id``.
Which ids begin and end a text is told beside them, by :class:`ControlIds`.
"""

import copy
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from lav2.errors import UserError


@dataclass(frozen=True)
class ControlIds:
    """The ids that stand for no text.

    ``stop`` are ids beside EOS that end an answer; ``add_bos`` says whether models of this vocabulary expect BOS before
    a text.
    """

    bos: int
    eos: int
    pad: int | None = None
    stop: tuple[int, ...] = ()
    add_bos: bool = True


class SentencePieceVocabulary:
    """Pieces of a SentencePiece ``model``, given as the content of its file.

    Raises:
        UserError: ``path``, named as the model's origin, holds no such model.
    """

    def __init__(self, model: bytes, path: Path):
        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(
                f"{path} is no SentencePiece model: {error} (LLaMA 3 has another kind of tokenizer.model; name its "
                "tokenizer.json)"
            ) from None

        self.size = self.processor.vocab_size()
        control = [self.processor.id_to_piece(id) for id in range(self.size) if self.processor.is_control(id)]
        self.control = re.compile(f"({'|'.join(map(re.escape, control))})") if control else None

    def encode(self, text: str, special: bool) -> list[int]:
        # SentencePiece itself takes no text for a control token
        parts = self.control.split(text) if special and self.control else [text]  # every other one is a control token
        encoded = [[self.token_id(part)] if odd % 2 else self.processor.encode(part) for odd, part in enumerate(parts)]
        return [id for ids in encoded for id in ids]

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def token_id(self, name: str) -> int | None:
        id = self.processor.piece_to_id(name)
        return id if self.processor.id_to_piece(id) == name else None


class HuggingFaceVocabulary:
    """The vocabulary of a ``tokenizers.Tokenizer``, of whatever kind."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # as plain text, that is
        self.size = 1 + max(tokenizer.get_vocab().values())

    @cached_property
    def parser(self) -> Any:
        """A second tokenizer, which reads control tokens."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def encode(self, text: str, special: bool) -> list[int]:
        return (self.parser if special else self.tokenizer).encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token_id(self, name: str) -> int | None:
        return self.tokenizer.token_to_id(name)


def read_sentencepiece(path: Path) -> tuple[SentencePieceVocabulary, ControlIds]:
    """A SentencePiece file such as LLaMA's ``tokenizer.model``."""
    vocabulary = SentencePieceVocabulary(path.read_bytes(), path)
    processor = vocabulary.processor
    pad = processor.pad_id() if processor.pad_id() >= 0 else None
    return vocabulary, ControlIds(processor.bos_id(), processor.eos_id(), pad)


def read_tokenizer_json(path: Path) -> tuple[HuggingFaceVocabulary, ControlIds]:
    """A Hugging Face ``tokenizer.json``; BOS and EOS are told by the files beside it.

    ``tokenizer_config.json`` names them; what it leaves open is taken from ``generation_config.json`` and
    ``config.json``, whose ``eos_token_id`` may list several ids that end an answer.

    Raises:
        UserError: a file is damaged, or none says what EOS is.
    """
    package = require_tokenizers(path)
    try:
        tokenizer = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more specific
        raise UserError(f"{path} is no tokenizer that the package tokenizers reads: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = read_settings(path.with_name("tokenizer_config.json"))
    ids = read_settings(path.with_name("config.json")) | read_settings(path.with_name("generation_config.json"))

    def find(kind: str) -> list[int]:
        stated = ids.get(f"{kind}_token_id", [])
        found = list(stated) if isinstance(stated, list) else [stated]
        if (token := names.get(f"{kind}_token")) is not None:
            token = token["content"] if isinstance(token, dict) else token
            if (first := tokenizer.token_to_id(token)) is None:
                raise UserError(f"{path} has no token {token!r}, which {kind}_token in tokenizer_config.json names")
            found = [first, *found]
        return found

    eos = find("eos")
    if not eos:
        raise UserError(
            f"nothing says which token of {path} ends a text: put the model's tokenizer_config.json or "
            "generation_config.json beside it"
        )
    bos = find("bos")
    pad = find("pad")[0] if "pad_token" in names else None
    adds_bos = tokenizer.encode("").ids[:1] == bos[:1]  # by its post-processor, unless tokenizer_config.json says
    add_bos = bool(bos) and names.get("add_bos_token", adds_bos)
    return HuggingFaceVocabulary(tokenizer), ControlIds((bos or eos)[0], eos[0], pad, tuple(eos), add_bos)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file that are not null; none if there is no such file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {key: value for key, value in stored.items() if value is not None}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no JSON object: {error}") from None


def require_tokenizers(path: Path) -> Any:
    """The package that computes the tokenizer in ``path``."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(f'the tokenizer in {path} needs the package tokenizers: pip install -e ".[gguf]"') from None
    return tokenizers
