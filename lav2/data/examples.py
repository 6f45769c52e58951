"""What stands between data files and tokens: questions and their answers, with or without an image."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the model is asked, and its answer. An answer of ``None`` is left to the model."""

    instruction: str
    input: str = ""
    response: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One sample before any template and tokenizer: an instruction and its response, and what was said before.

    ``key`` decides on which side of the validation split it falls: examples of one key stay together.
    ``where`` names its place for messages.
    ``history`` holds the exchanges before this one, the oldest first; their responses are supervised as well.
    ``system`` is the conversation's own system message.
    """

    instruction: str
    input: str
    response: str
    key: str
    where: str
    image: Path | None = None
    history: tuple[Turn, ...] = ()
    system: str = ""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation; of a single instruction one exchange."""
        return *self.history, Turn(self.instruction, self.input, self.response)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry of a data file, and its place."""

    reason: str
    where: str


def question_key(instruction: str, input: str = "") -> str:
    """The key of an example without an image: the same question never stands on both sides of the split."""
    return json.dumps([instruction, input])
