"""Instructions as people have them on disk: Alpaca's and GPT-4-LLM's json, conversations, science questions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lav2.data.conversations import read_llava, read_sharegpt
from lav2.data.examples import Example, Fault, question_key
from lav2.data.files import MALFORMED, is_unicode, read_entries, text_fault, unknown_fields
from lav2.data.images import one_key_for_each_image
from lav2.data.problems import Problems
from lav2.data.scienceqa import ScienceQASource, read_scienceqa


def read_instructions(sources: Iterable[str | Path | Mapping], problems: Problems) -> list[Example]:
    """All samples of one or several files, without looking into the images.

    Args:
        sources: a path is an Alpaca file; a mapping names a ``format`` and what it needs:

            * ``{format: alpaca, path}``: a json list of ``{"instruction", "input", "output"}``, or one a line (.jsonl);
            * ``{format: sharegpt, path}``: conversations, see :mod:`lav2.data.conversations`;
            * ``{format: llava, path, images}``: conversations about images, ``images`` being their folder;
            * ``{format: scienceqa, folder, split, prompt_format, images}``: see :mod:`lav2.data.scienceqa`;
              ``prompt_format`` is its ``format``, ``images: false`` leaves the images out.

    Raises:
        UserError: a file is missing or is not in the format; too many samples are bad.
    """
    rows: list[Example | Fault] = []
    science = []
    for source in sources:
        source = source if isinstance(source, Mapping) else {"path": source}
        form = source.get("format", "alpaca")
        if form == "scienceqa":
            science.append(source)
        elif form == "llava":
            rows += read_llava(Path(source["path"]), source["images"], problems)
        else:
            rows += (read_sharegpt if form == "sharegpt" else read_alpaca)(Path(source["path"]), problems)
    examples = problems.sift(rows)
    if science:
        examples += read_science(science, problems)
    return one_key_for_each_image(examples)


def read_science(sources: Iterable[Mapping], problems: Problems) -> list[Example]:
    """ScienceQA's questions; with ``images: false`` without their images, as LLaMA-Adapter V1's smaller model."""
    examples = []
    for source in sources:
        settings = {"format": source["prompt_format"]} if "prompt_format" in source else {}
        found = read_scienceqa([ScienceQASource(source["folder"], source["split"], **settings)], problems)
        examples += found if source.get("images", True) else [replace(example, image=None) for example in found]
    return examples


def read_alpaca(path: Path, problems: Problems) -> Iterator[Example | Fault]:
    """An ``input`` that is absent, null or blank means none."""
    entries = read_entries(path)
    problems.warnings += unknown_fields(path, (entry for _, entry in entries), ("id", "instruction", "input", "output"))
    for where, entry in entries:
        if fault := alpaca_fault(entry):
            yield Fault(fault, where)
        else:
            instruction, input = entry["instruction"].strip(), (entry.get("input") or "").strip()
            yield Example(instruction, input, entry["output"].strip(), question_key(instruction, input), where)


def alpaca_fault(entry: Any) -> str | None:
    if entry is MALFORMED:
        return "malformed json line"
    if not isinstance(entry, dict):
        return "entry that is no object"
    for name in ("instruction", "output"):
        if fault := text_fault(name, entry.get(name)):
            return fault
    input = entry.get("input")
    if not isinstance(input, str | None):
        return "input that is no text"
    return "input with broken characters" if input and not is_unicode(input) else None
