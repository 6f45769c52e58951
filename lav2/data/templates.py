"""The text around instructions and conversations: what the model reads before it answers, and how its answers end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lav2.data.examples import Turn
from lav2.errors import UserError


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation that is encoded by itself.

    ``supervised``: its tokens are in the loss. ``control``: strings in it that name control tokens stand for them (so
    it is of the template, never a user's text). ``bos``, ``eos``: this token goes before or after it.
    """

    text: str
    supervised: bool = False
    control: bool = False
    bos: bool = False
    eos: bool = False


@dataclass(frozen=True)
class Style:
    """How a kind of template frames one exchange.

    ``prompt`` stands before the answer; its ``{system}`` is filled by ``system`` in the first exchange of a
    conversation that has a system text, and empty elsewhere. ``between`` stands before every prompt but the first.
    ``opening`` is the system text of a conversation that brings none; ``opening_with_input``, if any, that of one whose
    first instruction has an input. An answer ends with ``stop``, or with EOS where that is empty.
    """

    prompt: str
    system: str = "{system}\n\n"
    answer: str = "{answer}"
    stop: str = ""
    between: str = ""
    input: str = "\n"  # what joins an instruction and its input
    opening: str = ""
    opening_with_input: str = ""
    control: bool = False  # whether the frames hold control tokens
    bos: str = "first"  # the prompts that BOS goes before: first | every | none


REQUEST = "Write a response that appropriately completes the request."
STYLES = {
    "alpaca": Style(
        prompt="{system}### Instruction:\n{question}\n\n### Response:",
        input="\n\n### Input:\n",
        opening=f"Below is an instruction that describes a task. {REQUEST}",
        opening_with_input="Below is an instruction that describes a task, paired with an input that provides further "
        f"context. {REQUEST}",
    ),
    "short": Style(prompt="{system}### Instruction:\n{question}\n\n### Response:", input="\n\n### Input:\n"),
    "plain": Style(prompt="{system}{question}"),
    "lavin": Style(prompt="{system}Instruction: {question}\nResponse:"),
    "vicuna": Style(
        prompt="{system}Human: {question}###Assistant:",
        system="{system}###",
        answer=" {answer}",
        stop="###",
        opening="A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.",
    ),
    "llama2": Style(
        prompt="[INST] {system}{question} [/INST]",
        system="<<SYS>>\n{system}\n<</SYS>>\n\n",
        answer=" {answer} ",
        bos="every",
    ),
    "llama3": Style(
        prompt="{system}<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        stop="<|eot_id|>",
        control=True,
    ),
    "chatml": Style(
        prompt="{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        stop="<|im_end|>",
        between="\n",
        control=True,
        bos="none",
    ),
}
KINDS = (*STYLES, "family")
CONTROL_TOKEN = re.compile(r"<\|\w+\|>")
SLOT = re.compile(r"(\{(?:system|question|answer)\})")


@dataclass(frozen=True)
class Template:
    """Renders instructions, with or without input, and conversations.

    For instructions: ``alpaca`` is the Alpaca template, on which the papers train; ``short`` leaves out its opening
    sentence, for tiny models; ``plain`` is the instruction alone; ``lavin`` is LaVIN's. Their prompts end with
    ``### Response:`` or the like and the answer follows with no separator: neither a space nor a line break belongs
    to the prompt, in training as in generation. EOS ends every answer.

    For conversations: ``vicuna`` (Vicuna 0, the format of the V2 paper's chat model, without the example exchange that
    the authors put first), ``llama2``, ``llama3``, ``chatml``. Each kind renders single instructions as well as
    conversations of several turns.
    """

    kind: str = "alpaca"

    def __post_init__(self):
        if self.kind not in STYLES:
            raise UserError(f"template is {self.kind!r}; choose one of {', '.join(KINDS)}")

    @property
    def style(self) -> Style:
        return STYLES[self.kind]

    @property
    def stop(self) -> str:
        """The text, or the control token's name, that ends every answer; empty where EOS does."""
        return self.style.stop

    @property
    def control_tokens(self) -> list[str]:
        """The names of the control tokens in it."""
        return CONTROL_TOKEN.findall(self.style.system + self.style.prompt + self.stop)

    def render(self, turns: Sequence[Turn], system: str = "") -> list[Segment]:
        """The whole conversation, its answers supervised; an answer of ``None`` at the end is left to the model."""
        style = self.style
        system = system or (turns[0].input.strip() and style.opening_with_input) or style.opening
        segments: list[Segment] = []
        for number, turn in enumerate(turns):
            question = turn.instruction + (style.input + turn.input if turn.input.strip() else "")
            frame = style.system if system and number == 0 else ""
            layout = (style.between if number else "") + style.prompt.replace("{system}", frame)
            bos = style.bos == "every" or (style.bos == "first" and number == 0)
            segments += self._fill(layout, {"{system}": system, "{question}": question}, supervised=False, bos=bos)
            if turn.response is not None:
                layout = style.answer + style.stop
                segments += self._fill(layout, {"{answer}": turn.response}, supervised=True, eos=not style.stop)
        return segments

    def prompt(self, instruction: str, input: str = "") -> str:
        """The prompt for one instruction as text; an input that is empty or blank counts as none."""
        return "".join(segment.text for segment in self.render([Turn(instruction, input)]))

    def _fill(
        self, layout: str, texts: dict[str, str], supervised: bool, bos: bool = False, eos: bool = False
    ) -> list[Segment]:
        """The segments of a layout with its slots filled; only a template with control tokens is cut at the slots."""
        runs: list[tuple[bool, str]] = []
        for piece in pieces(layout):
            control, text = self.style.control and piece not in texts, texts.get(piece, piece)
            if runs and runs[-1][0] == control:
                text = runs.pop()[1] + text
            runs.append((control, text))
        return [
            Segment(text, supervised, control, bos and number == 0, eos and number == len(runs) - 1)
            for number, (control, text) in enumerate(runs)
        ]


@cache  # there are few layouts, and a million samples
def pieces(layout: str) -> tuple[str, ...]:
    """A layout cut into its slots and what stands between them."""
    return tuple(filter(None, SLOT.split(layout)))


def choose_template(kind: str, tokenizer) -> Template:
    """The template of a kind; ``family`` is the one that the tokenizer's vocabulary is made for.

    Args:
        tokenizer: its ``token_id(name)`` is the id of a token or None.

    Raises:
        UserError: there is no such template, or the vocabulary lacks its control tokens.
    """
    if kind == "family":
        chat = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama3"}
        kind = next((chat[name] for name in chat if tokenizer.token_id(name) is not None), "vicuna")
    template = Template(kind)
    if lost := [name for name in template.control_tokens if tokenizer.token_id(name) is None]:
        raise UserError(f"template is {kind!r}, but the tokenizer has no token {lost[0]}; choose template=family")
    return template
