"""What every evaluation leaves behind: scores, each sample's prediction, and the settings they were made with."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One line of ``predictions.jsonl``: what was asked, what came out, and what was expected.

    ``context`` is what an expert said and the prompt contains.
    """

    id: str
    prompt: str
    prediction: str
    references: list[str]
    context: str = ""
    image: str | None = None
    condition: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """Scores side by side, printed and shown in the report: by category, or beside published ones."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Results:
    """The outcome of one evaluation; ``files`` (name → content as JSON) are written beside it."""

    name: str
    scores: dict[str, Any]
    predictions: list[Prediction]
    settings: dict[str, Any] = field(default_factory=dict)
    tables: list[ScoreTable] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, run_folder: str | Path) -> Path:
        """Write ``evaluation/<name>/`` in the run folder: ``scores.json``, ``predictions.jsonl``, ``settings.json``.

        A file of ``files`` is one object a line if its name ends with ``.jsonl``.
        """
        folder = Path(run_folder) / "evaluation" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"settings.json": self.settings, "predictions.jsonl": [asdict(one) for one in self.predictions]}
        for name, content in (contents | self.files | {"scores.json": self.scores}).items():
            if name.endswith(".jsonl"):
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
            else:
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        return folder
