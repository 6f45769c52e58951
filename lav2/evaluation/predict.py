"""What a model answers in an evaluation, each answer made once: kept as soon as it is made, found there ever after.

So an evaluation can be stopped at any time, killed too, and goes on where it stood; and one that is done is not
computed again unless something changes that its answers depend on: the adapter (its two files, which also know the
base, the encoder and the template), ``base=`` and ``vision_weights=`` where they are given, the dtype of the base and
how it is rounded, the generation settings without the batch size, the instruction, its input, or the image (path,
size, time of change). Delete the journal to make all answers anew.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import track

from lav2.adapter.folder import CONFIG, WEIGHTS
from lav2.data.examples import Turn
from lav2.data.tokens import encode_prompt
from lav2.errors import UserError
from lav2.inference import Assistant
from lav2.llama.settings import generation_problems

BATCH_SIZE = 32


def digest(*parts: Any) -> str:
    """A short hash of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Journal:
    """Values by key, in a file of JSON lines ``{"key": …, "value": …}`` to which each is added as soon as it is known.

    A line that a kill cut short does not count.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.values: dict[str, Any] = {}
        self._cut = False  # whether the file ends in the middle of a line
        if self.path.is_file():
            content = self.path.read_bytes()
            self._cut = bool(content) and not content.endswith(b"\n")
            for line in content.splitlines():
                try:
                    entry = json.loads(line)
                    self.values[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    continue

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep new values; they are in the file when this returns."""
        lines = [json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n" for key, value in values.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(("\n" * self._cut + "".join(lines)).encode())
        self._cut = False
        self.values.update(values)


class Predictor:
    """The model of a run as an evaluation sees it, with the journal of what it has answered.

    Args:
        load: gives the model; called when the first value is missing, so an evaluation that is done reads no weights.
        model: what tells this model from others, as JSON; see :func:`model_identity`.
        folder: of the evaluation; the journal is its ``journal.jsonl``.
        caption_prompts: those of the training.
    """

    def __init__(
        self, load: Callable[[], Assistant], model: Any, folder: str | Path, caption_prompts: Sequence[str] = ()
    ):
        self.load, self.model, self.folder = load, model, Path(folder)
        self.caption_prompts = list(caption_prompts)
        self.journal = Journal(self.folder / "journal.jsonl")

    @cached_property
    def assistant(self) -> Assistant:
        return self.load()

    def bare(self) -> "Predictor":
        """The same for the base model without its adapter, in the same journal."""
        return Predictor(lambda: self.assistant.bare(), {"base_of": self.model}, self.folder)

    def generate(
        self,
        instructions: Sequence[str],
        images: Sequence[Path | None] | None = None,
        inputs: Sequence[str] | None = None,
        *,
        label: str = "answering",
        **generation: Any,
    ) -> list[str]:
        """Answer each instruction, as :meth:`lav2.inference.Assistant.generate` does.

        A prompt that fills the whole model is answered with nothing, and named.

        Args:
            instructions, images, inputs: one a row.
            label: of the progress bar.
            generation: passed on as it is.
        """
        images = [None] * len(instructions) if images is None else list(images)
        inputs = [""] * len(instructions) if inputs is None else list(inputs)
        settings = {name: value for name, value in generation.items() if name != "batch_size"}
        keys = [
            digest(self.model, "answer", settings, instruction, input, stamp(image))
            for instruction, image, input in zip(instructions, images, inputs, strict=True)
        ]
        # Rows that share a path through the model and a length share a batch, the longest first: what does not fit
        # into memory shows at once.
        order = sorted(
            range(len(keys)), key=lambda row: (images[row] is not None, -len(instructions[row]) - len(inputs[row]))
        )

        def answer(rows: list[int]) -> list[str]:
            long = {row for row in rows if not self._fits(instructions[row], inputs[row])}
            for row in sorted(long):
                print(f"longer than the model reads, so answered with nothing: {instructions[row][:60]!r} …")
            rest = [row for row in rows if row not in long]
            columns = ([column[row] for row in rest] for column in (instructions, images, inputs))
            answers = self.assistant.generate(*columns, rows=rest, **generation) if rest else []
            made = dict(zip(rest, answers, strict=True))
            return [made.get(row, "") for row in rows]

        return self.values(keys, order, answer, generation.get("batch_size", BATCH_SIZE), label)

    def values(
        self,
        keys: Sequence[str],
        order: Sequence[int],
        compute: Callable[[list[int]], Sequence[Any]],
        batch_size: int,
        label: str,
    ) -> list[Any]:
        """A value for each key: from the journal, or computed batch by batch and journaled, with a progress bar.

        Args:
            keys: one a row.
            order: the rows in the order of the batches; rows of one key are computed once.
            compute: a batch of rows → their values, as JSON.
        """
        known = self.journal.values
        missing: dict[str, int] = {}
        for row in order:
            if keys[row] not in known:
                missing.setdefault(keys[row], row)
        rows = list(missing.values())
        if found := len(set(keys)) - len(rows):
            print(f"{label}: {found:,} of {found + len(rows):,} are done already, in {self.journal.path}")
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        for batch in track(batches, label) if batches else ():
            self.journal.add(dict(zip((keys[row] for row in batch), compute(batch), strict=True)))
        return [known[key] for key in keys]

    def _fits(self, instruction: str, input: str) -> bool:
        prompt = self.assistant.template.render([Turn(instruction, input)])
        length = len(encode_prompt(self.assistant.tokenizer, prompt))
        return length < self.assistant.model.llama.config.max_length


def stamp(image: Path | None) -> list | None:
    """What tells an image file from another and from its own later version."""
    if image is None:
        return None
    status = os.stat(image)
    return [str(image), status.st_size, status.st_mtime_ns]


def model_identity(adapter: Path, **settings: str | None) -> dict[str, str | None]:
    """What the answers of the adapter in the folder ``adapter`` depend on besides the question.

    Args:
        settings: how it is loaded: ``base``, ``vision_weights``, ``dtype`` and, of a rounded base, ``quantize``.
    """
    content = b"".join((adapter / name).read_bytes() for name in (CONFIG, WEIGHTS))
    return {"adapter": hashlib.sha256(content).hexdigest()[:16], **settings}


def check(generation: Mapping[str, Any], **paths: str | Path | None) -> None:
    """Refuse wrong settings of an evaluation, all of them in one message and before any weight is read.

    Args:
        generation: settings of :meth:`lav2.inference.Assistant.generate`.
        paths: the setting ``paths.<name>`` → the file or folder that must exist.

    Raises:
        UserError: names what is missing and what is wrong.
    """
    missing = [f"paths.{name} is {path}" for name, path in paths.items() if path is None or not Path(path).exists()]
    problems = [f"{', '.join(missing)}: name existing files and folders to score"] if missing else []
    problems += [f"eval.generation.{problem}" for problem in generation_problems(generation)]
    if problems:
        raise UserError("; ".join(problems))
