"""The text around an instruction: what the model reads before it answers."""

from dataclasses import dataclass

from lav2.errors import UserError

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
KINDS = ("alpaca", "short")


@dataclass(frozen=True)
class Template:
    """Renders an instruction, with or without input, as the prompt of a response.

    ``alpaca`` is the Alpaca template, on which the papers train; ``short`` leaves out its opening sentence, for tiny
    models. A prompt ends with ``### Response:`` and the response follows it with no separator: neither a space nor a
    line break belongs to the prompt, in training as in generation.
    """

    kind: str = "alpaca"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"template is {self.kind!r}; choose one of {', '.join(KINDS)}")

    def prompt(self, instruction: str, input: str = "") -> str:
        """The prompt for one instruction; an input that is empty or blank counts as none."""
        has_input = bool(input.strip())
        opening = "" if self.kind == "short" else WITH_INPUT if has_input else WITHOUT_INPUT
        context = f"### Input:\n{input}\n\n" if has_input else ""
        return f"{opening}### Instruction:\n{instruction}\n\n{context}### Response:"
