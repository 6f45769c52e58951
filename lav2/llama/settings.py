"""How an answer is generated, and what is wrong with such settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from lav2.errors import UserError


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated; names and meanings are those of transformers' ``generate``.

    Args:
        max_new_tokens: the most tokens to add to a prompt.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn from the softmax at this temperature.
        top_k: draw only among this many of the likeliest tokens; 0 sets no such limit.
        top_p: draw only among the likeliest tokens that together hold this probability.
        num_beams: more than 1 searches for the likeliest answer with so many beams, and takes no temperature.
        length_penalty: a beam's log-likelihood is divided by its length to this power: above 0 longer answers gain.
        repetition_penalty: above 1 makes the tokens of the prompt and of the answer so far less likely, below 1 more.
        stop: one text or several at which the answer ends; the text itself is not part of it.
        seed: of the draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    seed: int = 0

    @classmethod
    def checked(cls, settings: Mapping[str, Any]) -> "GenerationSettings":
        """The settings in a mapping.

        Raises:
            UserError: all problems with them.
        """
        if problems := generation_problems(settings):
            raise UserError("; ".join(problems))
        values = {**settings, "stop": stop_texts(settings.get("stop", ()))}
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @property
    def samples(self) -> bool:
        return self.temperature > 0


def whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def texts(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(text, str) and text for text in stop_texts(value))


# setting → whether a value will do, and what would
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda value: whole(value, 1), "a whole number, 1 or more"),
    "temperature": (lambda value: number(value) and value >= 0, "a number, 0 or more"),
    "top_k": (lambda value: whole(value, 0), "a whole number, 0 or more"),
    "top_p": (lambda value: number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "num_beams": (lambda value: whole(value, 1), "a whole number, 1 or more"),
    "length_penalty": (number, "a number"),
    "repetition_penalty": (lambda value: number(value) and value > 0, "a number above 0"),
    "stop": (texts, "one text or a list of texts, none of them empty"),
    "seed": (lambda value: whole(value, 0), "a whole number, 0 or more"),
    "batch_size": (lambda value: whole(value, 1), "a whole number, 1 or more"),
}


def generation_problems(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with settings for :meth:`lav2.inference.Assistant.generate`, a line each that begins with the name.

    Settings that are absent have their defaults.
    """
    problems = []
    for name, value in settings.items():
        if name not in RULES:
            problems.append(f"{name} is no generation setting; there are {', '.join(RULES)}")
        elif not RULES[name][0](value):
            problems.append(f"{name} is {value!r}; it must be {RULES[name][1]}")
    if not problems and settings.get("num_beams", 1) > 1 and settings.get("temperature", 0) > 0:
        problems.append(
            f"num_beams is {settings['num_beams']} with temperature {settings['temperature']}, but beam search draws "
            "nothing: set temperature to 0 or num_beams to 1"
        )
    return problems
