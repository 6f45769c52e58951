"""What experts say becomes context of the instruction (V2 paper, sec 4.4, figures 8 and 9)."""

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from lav2.data.examples import Turn
from lav2.data.pictures import Picture
from lav2.errors import UserError
from lav2.experts.images import AnswerCache, image_key, open_image
from lav2.llama.settings import GenerationSettings

if TYPE_CHECKING:
    from lav2.inference import Assistant


class Expert(Protocol):
    """Gives text about an image; what has nothing to say gives the empty text.

    An expert may also have ``fingerprint``, a str that tells all its answers depend on besides the image (such answers
    can be kept on disk), and ``share_base(assistant)``, called before the first image, if it runs on the base of the
    model that answers (:class:`lav2.experts.CaptionExpert`).
    """

    name: str  # as the prompt shows it

    def __call__(self, image: Image.Image) -> str: ...


@dataclass(frozen=True)
class Consultation:
    """What experts said about one image, and why others did not, by the experts' names."""

    texts: dict[str, str]
    failures: dict[str, str]


class Experts:
    """Several experts as one, and the way their texts enter a prompt.

    An expert that fails, or takes too long, is named in one line on stderr and the answer goes on without it. Answers
    are kept by the image's content, failures are not.

    Args:
        experts: in the order of their lines; of a mapping, its values.
        line: how a text is written into the context, with ``{name}`` and ``{text}``.
        max_tokens: the longest context; longer ones are cut, and so are those that would not leave room for the
            question and the answer. The longest texts lose most: all are cut to one length.
        timeout: seconds for one expert and one image; ``None`` waits. A late answer still enters the cache, and until
            it is there its expert is asked nothing else.
        with_image: whether the model that answers sees the image too; ``False`` for one that reads texts, but has not
            learnt to read a text beside an image.
        cache: a folder that keeps answers for the next time.

    Raises:
        UserError: two experts have one name, or a setting makes no sense.
    """

    def __init__(
        self,
        experts: Sequence[Expert] | Mapping[str, Expert],
        line: str = "{name}: {text}",
        max_tokens: int = 256,
        timeout: float | None = 60.0,
        with_image: bool = True,
        cache: str | Path | None = None,
    ):
        self.labels = dict(experts) if isinstance(experts, Mapping) else {}
        self.experts = list(self.labels.values() or experts)
        names = [expert.name for expert in self.experts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two experts are called {min(twice)!r}: give one of them another name (experts.….name)")
        try:
            line.format(name="", text="")
        except (KeyError, IndexError, ValueError, AttributeError):
            raise UserError(f"context.line is {line!r}; it can hold {{name}} and {{text}}") from None
        if type(max_tokens) is not int or max_tokens < 1:
            raise UserError(f"context.max_tokens is {max_tokens!r}; it must be a whole number, 1 or more")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise UserError(f"context.timeout is {timeout!r}; it must be a number of seconds above 0, or null")
        self.line, self.max_tokens, self.timeout, self.with_image = line, max_tokens, timeout, with_image
        self.cache = AnswerCache(cache)
        self.late: dict[str, Future] = {}

    @classmethod
    def of(cls, experts: "Experts | Sequence[Expert]") -> "Experts":
        """A list of experts with the settings' defaults; what is an ``Experts`` already stays as it is."""
        return experts if isinstance(experts, Experts) else cls(experts)

    def only(self, names: Iterable[str]) -> "Experts":
        """These experts with the same settings, and what they know already; named as the prompt shows them or, of a
        mapping, by their keys.

        Raises:
            UserError: there is no expert of such a name.
        """
        shown = {expert.name: expert for expert in self.experts}
        known, names = self.labels | shown, [name.strip() for name in names]
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"there is no expert {unknown[0]!r}; there are: {', '.join(shown)}")
        chosen, wanted = copy.copy(self), [known[name] for name in names]
        chosen.experts = [expert for expert in self.experts if expert in wanted]
        return chosen

    def consult(self, image: Picture) -> Consultation:
        """Ask every expert about ``image``, one after another."""
        image = open_image(image)
        key = image_key(image)
        said = Consultation({}, {})
        for expert in self.experts:
            text = self.cache.get(expert, key)
            if text is None:
                text, reason = self._ask(expert, image, key)
                if reason:
                    said.failures[expert.name] = reason
                    about = f" about {image.filename}" if image.filename else ""
                    say(f"expert {expert.name!r} says nothing{about}: {reason}; the answer goes on without it")
                    continue
            said.texts[expert.name] = text
        return said

    def _ask(self, expert: Expert, image: Image.Image, key: str) -> tuple[str, str]:
        """The expert's text, or the reason why there is none."""
        if expert.name in self.late and not self.late[expert.name].done():
            return "", "it is still busy with an earlier image"
        outcome: Future[str] = Future()

        def work() -> None:
            try:
                text = expert(image)
                if not isinstance(text, str):
                    raise TypeError(f"it gave {type(text).__name__} instead of text")
                self.cache.put(expert, key, text.strip())
                outcome.set_result(text.strip())
            except BaseException as error:  # whatever it is, who waits must hear of it
                outcome.set_exception(error)

        Thread(target=work, daemon=True).start()  # a thread cannot be stopped; a daemon does not keep the program alive
        wait([outcome], self.timeout)
        if not outcome.done():
            self.late[expert.name] = outcome
            return "", f"no answer within {self.timeout:g} seconds"
        error = outcome.exception()
        if error is None:
            return outcome.result(), ""
        message = " ".join(str(error).split())
        return "", message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"

    def add_context(
        self,
        assistant: "Assistant",
        instructions: Sequence[str],
        images: Sequence[Picture | None],
        inputs: Sequence[str],
        settings: Mapping[str, Any],
    ) -> tuple[list[str], list[Picture | None]]:
        """The ``inputs`` of :meth:`lav2.inference.Assistant.generate` with the experts' lines below them, and the
        images that the model still sees.

        Neither an instruction nor an input is ever cut; a row without an image stays as it is.

        Args:
            settings: of the generation; its ``max_new_tokens`` are left for the answer.
        """
        if not self.experts:
            return list(inputs), list(images)
        for expert in self.experts:
            if hasattr(expert, "share_base"):
                expert.share_base(assistant)
        told, max_new_tokens = [], GenerationSettings.checked(settings).max_new_tokens
        for instruction, image, given in zip(instructions, images, inputs, strict=True):
            if image is not None:
                fits = self.limits(assistant, instruction, given, max_new_tokens)
                given = joined(given, self.fit(self.consult(image).texts, fits))
            told.append(given)
        seen = self.with_image and assistant.encoder is not None
        return told, list(images) if seen else [None] * len(told)

    def limits(
        self, assistant: "Assistant", instruction: str, given: str, max_new_tokens: int
    ) -> Callable[[str], bool]:
        """Whether a context is short enough, for this instruction and its input."""
        room = assistant.model.llama.config.max_length - max_new_tokens

        def fits(context: str) -> bool:
            prompt = assistant.template.render([Turn(instruction, joined(given, context))])
            return (
                len(assistant.tokenizer.encode(context, bos=False)) <= self.max_tokens
                and len(assistant.prompt_tokens(prompt, has_image=True)) <= room
            )

        return fits

    def fit(self, texts: Mapping[str, str], fits: Callable[[str], bool]) -> str:
        """The texts' lines, the longest texts cut until ``fits(context)``."""
        low, high = 0, max(map(len, texts.values()), default=0)
        whole = self.lines(texts, high)
        if not whole or fits(whole):
            return whole
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(self.lines(texts, middle)) else (low, middle - 1)
        say(f"experts said more than fits into the prompt: each text was cut to {low} characters")
        return self.lines(texts, low)

    def lines(self, texts: Mapping[str, str], length: int) -> str:
        """The context, with each text cut to ``length`` characters."""
        short = {name: cut(text, length) for name, text in texts.items()}
        return "\n".join(self.line.format(name=name, text=text) for name, text in short.items() if text)


def joined(given: str, context: str) -> str:
    """An input with the context below it; either may be empty."""
    return "\n".join(part for part in (given, context) if part.strip())


def cut(text: str, length: int) -> str:
    """The first ``length`` characters of ``text``, without the word that this would break."""
    if len(text) <= length:
        return text
    start = text[:length]
    if not text[length].isspace() and len(words := start.rsplit(maxsplit=1)) == 2:
        start = words[0]
    return start.rstrip(" ,;\n")


def say(line: str) -> None:
    print(line, file=sys.stderr)
