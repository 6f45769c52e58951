"""Text ↔ token ids, whatever file the vocabulary comes in."""

from pathlib import Path

from lav2.errors import UserError
from lav2.llama.gguf_tokenizer import read_gguf_tokenizer
from lav2.llama.vocabulary import read_sentencepiece, read_tokenizer_json

READERS = {".gguf": read_gguf_tokenizer, ".json": read_tokenizer_json}  # by the file's ending; others: SentencePiece
FILES = ("tokenizer.model", "tokenizer.json")  # of a model folder, the better one first


class Tokenizer:
    """Text ↔ token ids by the tokenizer in the file ``path``.

    The file is a SentencePiece model such as LLaMA's ``tokenizer.model``, a Hugging Face ``tokenizer.json``, or a GGUF
    file, whose own tokenizer is taken.

    Attributes:
        bos_id, eos_id: the ids that begin and end a text.
        stop_ids: every id that ends an answer, EOS first; LLaMA 3's chat models have several.
        pad_id: an id for padded slots, which are never seen: the file's own or, where it has none, EOS.
        vocab_size: one more than the largest id.
        add_bos: whether models of this vocabulary expect BOS before a text.
        adds_space: whether a text is encoded as if a space stood before it, as SentencePiece does for LLaMA.

    Raises:
        UserError: the file is missing or no tokenizer, or a package to read it is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no tokenizer at {path}: expected a tokenizer.model, a tokenizer.json or a GGUF file")
        self.vocabulary, control = READERS.get(self.path.suffix, read_sentencepiece)(self.path)
        self.bos_id, self.eos_id, self.add_bos = control.bos, control.eos, control.add_bos
        self.stop_ids = tuple(dict.fromkeys((control.eos, *control.stop)))
        self.pad_id = control.eos if control.pad is None else control.pad
        self.adds_space = self.decode(self.encode("a", bos=False) * 2) == "a a"

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    def encode(self, text: str, bos: bool = True, eos: bool = False, special: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: anything.
            bos: put BOS before, if ``add_bos`` (SmolLM2, for one, was trained without).
            eos: put EOS after.
            special: read the names of control tokens in the text, such as ``<|im_start|>``, as those tokens. For a
                template's own words only: in a user's text such names must stay plain text.
        """
        ids = self.vocabulary.encode(text, special)
        return [self.bos_id] * (bos and self.add_bos) + ids + [self.eos_id] * eos

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; control tokens (BOS, EOS, padding) give nothing."""
        return self.vocabulary.decode(ids)

    def token_id(self, name: str) -> int | None:
        """The id of the token that is called ``name``, if there is one."""
        return self.vocabulary.token_id(name)


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer in the file or model folder ``path``.

    Args:
        path: a file as for :class:`Tokenizer`, or a folder with a ``tokenizer.model`` or else a ``tokenizer.json``
            (see :func:`tokenizer_file`).
        vocab_size: how many tokens the model knows; a tokenizer with more is refused.

    Raises:
        UserError: there is no tokenizer, it cannot be read, or it does not belong to the model.
    """
    tokenizer = Tokenizer(tokenizer_file(path))
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{tokenizer.path} is a tokenizer of another vocabulary: it has {tokenizer.vocab_size:,} tokens, the model "
            f"knows {vocab_size:,}; name the model's own tokenizer (llama.tokenizer)"
        )
    return tokenizer


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer's file of the model at ``path``; ``path`` itself if it is no folder.

    Meta's download of LLaMA 1 and 2 keeps one ``tokenizer.model`` beside the folders of all sizes.
    """
    path = Path(path)
    candidates = [path / name for name in FILES] if path.is_dir() else [path]
    if (path / "params.json").is_file():
        candidates.append(path.absolute().parent / FILES[0])
    return next((file for file in candidates if file.is_file()), candidates[0])
