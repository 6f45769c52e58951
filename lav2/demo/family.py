"""``make family``: V1, V2, V2 with LoRA and LaVIN on the same data for the same steps, in one table.

It ends with exit code 1 where a method has not learnt to see: its F1 of held-out scenes' colors and shapes must be at
least 0.80, and with shuffled images at most 0.15.

Each method trains and is scored in a process of its own, so that seconds and peak memory are its own. A method that is
done is not run again; remove ``outputs/family`` to start anew.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lav2.cli import clear_errors
from lav2.errors import UserError

METHODS = {"v1": "LLaMA-Adapter V1", "v2": "LLaMA-Adapter V2", "v2_lora": "V2 with LoRA", "lavin": "LaVIN"}
FOLDER = Path("outputs/family")
COLUMNS = {
    "trainable": "trainable",
    "color_shape_f1": "F1",
    "color_shape_f1_shuffled": "F1, shuffled images",
    "CIDEr": "CIDEr",
    "question_accuracy": "questions, image",
    "seconds": "training, s",
    "peak_memory_mb": "peak memory, MB",
}
LEAST_F1, MOST_SHUFFLED = 0.80, 0.15  # what each method must reach on held-out scenes, and not exceed on other ones


def main() -> None:
    rows = {method: run(method, sys.argv[1:]) for method in METHODS}
    (FOLDER / "family.json").write_text(json.dumps(rows, indent=2) + "\n")
    Console().print(make_table(rows))
    print(f"Each method's run folder with its report.html is in {FOLDER}.")
    if missed := misses(rows):
        sys.exit(f"missed: {'; '.join(missed)}")


def make_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each method, as :func:`run` gives it."""
    table = Table("method", *COLUMNS.values(), title="the family on the embedded world, same data, same steps")
    for method, row in rows.items():
        values = (row[name] for name in COLUMNS)
        table.add_row(METHODS[method], *(f"{v:.3f}" if isinstance(v, float) else f"{v:,}" for v in values))
    return table


def misses(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What each method misses of the goal, a few words each; a score that is not finite misses it too."""
    found = []
    for method, row in rows.items():
        if not row["color_shape_f1"] >= LEAST_F1:
            found.append(f"{METHODS[method]} has F1 {row['color_shape_f1']:.3f}, below {LEAST_F1:.2f}")
        if not row["color_shape_f1_shuffled"] <= MOST_SHUFFLED:
            found.append(
                f"{METHODS[method]} has F1 {row['color_shape_f1_shuffled']:.3f} with shuffled images, above "
                f"{MOST_SHUFFLED:.2f}"
            )
    return found


def run(method: str, overrides: list[str]) -> dict[str, float]:
    """Train and score one method, or go on where it stopped; its row of the table."""
    folder = FOLDER / method
    result = folder / "family.json"
    if result.is_file():
        return json.loads(result.read_text())
    print(f"{METHODS[method]} → {folder}")
    started = any(folder.glob("checkpoints/*.ckpt"))
    target = f"resume={folder}" if started else f"hydra.run.dir={folder}"
    start = time.monotonic()
    peak = call("train.py", f"experiment=family/{method}", target, *overrides)
    seconds = round(time.monotonic() - start)
    call("evaluate.py", f"run={folder}", "eval=demo")
    scores = json.loads((folder / "evaluation" / "demo" / "scores.json").read_text())
    trainable = json.loads((folder / "parameters.json").read_text())["trainable"]
    row = {"trainable": trainable, "seconds": seconds, "peak_memory_mb": peak} | {
        name: scores[name] for name in COLUMNS if name in scores
    }
    result.write_text(json.dumps(row, indent=2) + "\n")
    return row


def call(script: str, *arguments: str) -> int:
    """Run one of the project's commands; its peak resident memory in MB."""
    process = subprocess.Popen([sys.executable, script, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{script} {' '.join(arguments)} failed; what it printed above says why")
    return usage.ru_maxrss // 1024


if __name__ == "__main__":
    with clear_errors():
        main()
