"""LLaMA's tokenizer: a SentencePiece model."""

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from lav2.errors import UserError


class Tokenizer:
    """Text ↔ token ids by the SentencePiece model at ``path``.

    Raises:
        UserError: the file is missing or is no SentencePiece model.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no tokenizer at {path}: expected a SentencePiece file such as LLaMA's tokenizer.model")
        try:
            self.model = SentencePieceProcessor(model_file=str(self.path))
        except RuntimeError as error:
            raise UserError(f"{path} is no SentencePiece model: {error}") from None
        self.bos_id: int = self.model.bos_id()
        self.eos_id: int = self.model.eos_id()
        # LLaMA has no padding token; what stands in padded slots is never seen, so any id will do.
        self.pad_id: int = self.model.pad_id() if self.model.pad_id() >= 0 else self.eos_id
        # Whether every text is encoded as if a space stood before it (SentencePiece's dummy prefix, as LLaMA has it)
        self.adds_space: bool = self.model.decode(self.model.encode("a") * 2) == "a a"

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size()

    def encode(self, text: str, bos: bool = True, eos: bool = False, special: bool = False) -> list[int]:
        """Token ids of ``text``, with BOS before and EOS after when asked.

        ``special`` (names of control tokens in ``text`` stand for them) means nothing here: text never does.
        """
        return [self.bos_id] * bos + self.model.encode(text) + [self.eos_id] * eos

    def token_id(self, name: str) -> int | None:
        """The id of the piece that is called ``name``, if there is one."""
        id = self.model.piece_to_id(name)
        return id if self.model.id_to_piece(id) == name else None

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; control tokens (BOS, EOS, padding) give nothing."""
        return self.model.decode(ids)
