"""What every evaluation leaves behind: scores, each sample's prediction, and the settings they were made with."""

import json
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


@dataclass
class Results:
    """The outcome of one evaluation."""

    name: str
    scores: dict[str, Any]
    predictions: list[Prediction]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, run_folder: str | Path) -> Path:
        """Write ``evaluation/<name>/`` in the run folder: ``scores.json``, ``predictions.jsonl``, ``settings.json``."""
        folder = Path(run_folder) / "evaluation" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(self.scores, indent=2) + "\n")
        (folder / "settings.json").write_text(json.dumps(self.settings, indent=2) + "\n")
        with (folder / "predictions.jsonl").open("w") as file:
            for prediction in self.predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        return folder
