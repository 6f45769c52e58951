"""From the tokens of an answer to its text, whole or as it comes."""

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoders write for bytes that form no character, or none yet


class AnswerText:
    """The text of an answer: cut at the first stop text, without white space around it.

    Bytes that form no character, such as the first half of an emoji, are left out.

    Args:
        decode: token ids → text; more ids may only add to the text, or complete bytes at its end.
        stop: texts at which an answer ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self.decode, self.stop = decode, tuple(stop)
        # The tokens that a stop text at the end can span: each gives a byte or more, save a control token now and then.
        self.tail = max((len(text.encode()) for text in self.stop), default=0) + 16

    def readable(self, ids: list[int]) -> str:
        return self.decode(ids).replace(BROKEN, "")

    def ended(self, ids: list[int]) -> bool:
        """Whether a stop text stands in the answer; to be asked after every token, so only the end is read."""
        text = self.readable(ids[-self.tail :])
        return any(stop in text for stop in self.stop)

    def cut(self, text: str) -> str:
        return text[: min((text.find(stop) for stop in self.stop if stop in text), default=len(text))]

    def whole(self, ids: list[int]) -> str:
        """The answer, when ``ids`` are all there is."""
        return self.cut(self.readable(ids)).strip()

    def settled(self, ids: list[int]) -> str:
        """The part of the answer that no further token can change: what may be the beginning of a stop text waits."""
        text = self.readable(ids)
        cut = self.cut(text)
        if cut == text:
            cut = text[: len(text) - max((begun(stop, text) for stop in self.stop), default=0)]
        return cut.strip()


def begun(stop: str, text: str) -> int:
    """How many characters of ``stop``, but not all of it, stand at the end of ``text``."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
