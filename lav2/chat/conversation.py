"""A conversation: what was said, and the part of it that the model reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lav2.data.conversations import ASSISTANT, HUMAN
from lav2.data.examples import Turn
from lav2.data.pictures import Picture
from lav2.data.templates import Segment
from lav2.errors import UserError
from lav2.experts import Consultation, Expert, Experts
from lav2.experts.images import open_image
from lav2.inference import Assistant
from lav2.llama.settings import GenerationSettings


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, with the name of the picture they were about and what experts told of it."""

    question: str
    answer: str
    picture: str = ""
    context: str = ""


class Conversation:
    """Questions and answers, about one picture after another.

    The model reads the last turns that fit, then the question with what the experts tell of the picture; it sees the
    newest picture alone (a model has one visual path), and reads what was said about earlier ones.

    Args:
        assistant: who answers.
        experts: who is asked about each picture, once.
        turns: the most earlier turns to read; ``None``: all that fit.

    Attributes:
        exchanges: what was said, the oldest first.
        dropped: how many of the oldest turns did not fit beside the latest question.
    """

    def __init__(self, assistant: Assistant, experts: Experts | Sequence[Expert] = (), turns: int | None = None):
        self.assistant, self.turns = assistant, turns
        self.use(experts)
        self.reset()

    def use(self, experts: Experts | Sequence[Expert]) -> None:
        """Ask these experts from here on."""
        self.experts = Experts.of(experts)
        for expert in self.experts.experts:
            if hasattr(expert, "share_base"):
                expert.share_base(self.assistant)
        self.said: Consultation | None = None

    def reset(self) -> None:
        """Forget what was said, and the picture."""
        self.exchanges: list[Exchange] = []
        self.dropped = 0
        self.show(None)

    def show(self, picture: Picture | None, name: str = "") -> None:
        """From here on questions are about ``picture``; ``None``: about none.

        Args:
            name: what the conversation calls it; default: its file's name.

        Raises:
            UserError: it cannot be read, or nobody here could see it.
        """
        image = None
        if picture is not None:
            image = open_image(picture)
            if self.assistant.encoder is None and not self.experts.experts:
                raise UserError("this adapter was trained without images, so it cannot see one; experts=[…] could tell")
        self.image: Image.Image | None = image
        self.picture = name or (image.filename if image else "")
        self.features: Tensor | None = None
        self.said = None

    def consult(self) -> Consultation:
        """What the experts say about the picture; each is asked once."""
        if self.said is None:
            self.said = self.experts.consult(self.image) if self.image else Consultation({}, {})
        return self.said

    def ask(self, question: str, **settings: Any) -> Iterator[str]:
        """The answer in pieces, as they come. Closing the iterator ends the answer; what was said of it is kept.

        Args:
            settings: see :class:`lav2.llama.settings.GenerationSettings`; beams cannot be streamed.

        Raises:
            UserError: a setting is wrong, or the question is empty or too long; at the call.
        """
        question = question.strip()
        if not question:
            raise UserError("the question is empty")
        max_new_tokens = GenerationSettings.checked(settings).max_new_tokens
        context = ""
        if self.image and self.experts.experts:
            fits = self.experts.limits(self.assistant, question, "", max_new_tokens)
            context = self.experts.fit(self.consult().texts, fits)
        visual = self.see()
        prompt = self.prompt(question, context, visual is not None, max_new_tokens)
        pieces = self.assistant.stream_answer(prompt, visual, **settings)
        return self._kept(pieces, question, context)

    def _kept(self, pieces: Iterator[str], question: str, context: str) -> Iterator[str]:
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                yield piece
        finally:  # at its end, and when it is stopped
            if answer:
                self.exchanges.append(Exchange(question, answer, self.picture, context))

    def see(self) -> Tensor | None:
        """The features (S, F) of the picture; ``None`` where there is none, or the model does not see it."""
        sees = self.assistant.encoder is not None and (self.experts.with_image or not self.experts.experts)
        if self.image is None or not sees:
            return None
        if self.features is None:
            self.features = next(self.assistant.encode_images([self.image]))
        return self.features

    def prompt(self, question: str, context: str, has_image: bool, max_new_tokens: int) -> list[Segment]:
        """The last turns that leave room for ``max_new_tokens``, and the question, which is never cut.

        Raises:
            UserError: the question alone fills what the model can read.
        """
        template, longest = self.assistant.template, self.assistant.model.llama.config.max_length
        last = Turn(question, context)
        earlier = [Turn(exchange.question, "", exchange.answer) for exchange in self.exchanges]
        if self.turns is not None:
            earlier = earlier[len(earlier) - self.turns :] if self.turns < len(earlier) else earlier

        def length(turns: list[Turn]) -> int:
            return len(self.assistant.prompt_tokens(template.render(turns), has_image))

        if (needed := length([last])) >= longest:
            raise UserError(f"the question takes {needed} tokens and this model reads {longest}: shorten it")
        start = len(earlier)
        while start and length([*earlier[start - 1 :], last]) <= longest - max_new_tokens:
            start -= 1
        self.dropped = start
        return template.render([*earlier[start:], last])

    @property
    def note(self) -> str:
        """One line about what the latest question left out; empty if that is nothing."""
        if not self.dropped:
            return ""
        turns = "the oldest turn was" if self.dropped == 1 else f"the {self.dropped} oldest turns were"
        return f"{turns} left out: this model reads {self.assistant.model.llama.config.max_length} tokens"

    def entry(self, id: str) -> dict[str, Any]:
        """The conversation as an entry of ShareGPT's format; a question also has its ``image`` and ``context``."""
        turns = []
        for one in self.exchanges:
            more = {name: text for name, text in (("image", one.picture), ("context", one.context)) if text}
            turns += [{"from": HUMAN, "value": one.question, **more}, {"from": ASSISTANT, "value": one.answer}]
        return {"id": id, "conversations": turns}

    def save(self, path: str | Path) -> None:
        """Write the conversation in ShareGPT's format, which training reads.

        Raises:
            UserError: nothing was said yet, or the file cannot be written.
        """
        path = Path(path)
        if not self.exchanges:
            raise UserError("nothing was said yet, so there is nothing to save")
        try:
            path.write_text(json.dumps([self.entry(path.stem)], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
