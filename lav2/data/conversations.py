"""Conversations of any number of turns: ShareGPT's and Vicuna's json, and LLaVA's, which may be about an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lav2.data.examples import Example, Fault, Turn, question_key
from lav2.data.files import MALFORMED, read_entries, text_fault, unknown_fields
from lav2.data.images import image_path, is_web_address
from lav2.data.problems import Problems

HUMAN, ASSISTANT, SYSTEM = "human", "assistant", "system"
SPEAKERS = {
    "human": HUMAN,
    "user": HUMAN,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "system": SYSTEM,
}
IMAGE_TOKEN = "<image>"  # where LLaVA's own model reads the image; here the image enters by itself


def read_sharegpt(path: Path, problems: Problems) -> Iterator[Example | Fault]:
    """``[{"id", "conversations": [{"from": "human" | "gpt" | "system", "value"}, …]}, …]``, or one object a line."""
    entries = read_entries(path)
    problems.warnings += unknown_fields(path, (entry for _, entry in entries), ("id", "conversations"))
    for where, entry in entries:
        conversation = exchanges(entry)
        yield Fault(conversation, where) if isinstance(conversation, str) else example(*conversation, where)


def read_llava(
    path: Path, images: str | Path, problems: Problems, image_needed: bool = False, prompt: str = ""
) -> Iterator[Example | Fault]:
    """The same with ``"image"``, a path from the folder ``images``; ``<image>`` is taken out of what the human says.

    Args:
        image_needed: whether an entry without an image is bad; else it is a conversation like any other.
        prompt: what the human asks who says nothing but ``<image>``.
    """
    entries = read_entries(path)
    problems.warnings += unknown_fields(path, (entry for _, entry in entries), ("id", "image", "conversations"))
    for where, entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else None
        conversation = exchanges(entry, prompt if image else None)
        if isinstance(conversation, str):
            yield Fault(conversation, where)
        elif image is None and image_needed:
            yield Fault("missing image field", where)
        elif image is None:
            yield example(*conversation, where)
        elif not isinstance(image, str) or not image.strip():
            yield Fault("image that is not the path of one image", where)
        elif is_web_address(image):
            yield Fault("image at a web address, which is not downloaded", where)
        else:
            yield example(*conversation, where, image, image_path(images, image))


def example(system: str, turns: list[Turn], where: str, key: str | None = None, image: Path | None = None) -> Example:
    """The conversation as an example; without an image its first question is its key, as for instructions."""
    *history, last = turns
    key = key or question_key(turns[0].instruction)
    return Example(last.instruction, "", last.response, key, where, image, tuple(history), system)


def exchanges(entry: Any, image_prompt: str | None = None) -> tuple[str, list[Turn]] | str:
    """The system message and the exchanges of a conversation, or what is wrong with it.

    Args:
        image_prompt: not None in a conversation about an image: ``<image>`` is taken out of the human's turns, and a
            turn with nothing else says ``image_prompt``.
    """
    if entry is MALFORMED:
        return "malformed json line"
    if not isinstance(entry, dict):
        return "entry that is no object"
    said = entry.get("conversations")
    if not isinstance(said, list) or not said:
        return "missing conversations" if said is None else "conversations that are no list of turns"
    system, turns, question = "", [], None
    for number, turn in enumerate(said):
        name = turn.get("from") if isinstance(turn, dict) else None
        speaker = SPEAKERS.get(name) if isinstance(name, str) else None
        if speaker is None:
            return f"turn of an unknown speaker {name!r}"
        text = turn.get("value")
        if speaker == HUMAN and isinstance(text, str) and IMAGE_TOKEN in text:
            if image_prompt is None:
                return f"{IMAGE_TOKEN} without an image"
            text = text.replace(IMAGE_TOKEN, "").strip() or image_prompt
        if fault := text_fault("turn", text):
            return fault
        text = text.strip()
        if speaker == SYSTEM:
            if number:
                return "system message that is not the first turn"
            system = text
        elif speaker == HUMAN:
            if question is not None:
                return "two human turns in a row"
            question = text
        elif question is None:
            return "two assistant turns in a row" if turns else "conversation that the human does not begin"
        else:
            turns.append(Turn(question, "", text))
            question = None
    if question is not None:
        return "conversation that ends without an answer"
    return (system, turns) if turns else "conversation without a turn"
