"""Data files of json: whole, or one object a line."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lav2.errors import UserError

MALFORMED = object()  # stands for a line that cannot be read


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; bytes that are no UTF-8 stay as lone surrogates.

    Raises:
        UserError: the file is missing.
    """
    if not path.is_file():
        raise UserError(f"no data file {path}; check the path in the data config")
    return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def is_unicode(text: str) -> bool:
    """Whether ``text`` has no lone surrogates, which no tokenizer takes: bytes that were no UTF-8, or json escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: the file is missing, or is no UTF-8 or no json.
    """
    text = read_text(path)
    try:
        if not is_unicode(text):
            raise ValueError("it is not in UTF-8")
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no readable json: {error}") from None


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """(place, content) of each entry of a json list, or of each line that is not blank of a ``.jsonl`` file.

    :data:`MALFORMED` stands for a line that cannot be read.

    Raises:
        UserError: the file is missing, or is no json list.
    """
    if path.suffix == ".jsonl":
        lines = enumerate(read_text(path).split("\n"), start=1)
        return [(f"{path.name} line {number}", _parsed(line)) for number, line in lines if line.strip()]
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} holds no json list; one object a line needs the suffix .jsonl")
    return [(f"{path.name} entry {position}", entry) for position, entry in enumerate(content)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line) if is_unicode(line) else MALFORMED
    except ValueError:
        return MALFORMED


def text_fault(name: str, value: Any) -> str | None:
    """What is wrong with a field that must hold text; ``None`` is a field that is not there."""
    if value is None:
        return f"missing {name}"
    if not isinstance(value, str):
        return f"{name} that is no text"
    if not value.strip():
        return f"empty {name}"
    return None if is_unicode(value) else f"{name} with broken characters"


def unknown_fields(path: Path, entries: Iterable[Any], known: Iterable[str]) -> list[str]:
    """A line that names the fields of ``entries`` that nothing reads, such as a misspelt one; none if all are known."""
    counts = Counter(name for entry in entries if isinstance(entry, dict) for name in entry)
    unknown = [f"{name!r} (in {count:,})" for name, count in counts.items() if name not in known]
    return [f"{path.name} has fields that are not read: {', '.join(unknown)}"] if unknown else []
