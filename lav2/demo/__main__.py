"""``make demo``: train V2 jointly on the embedded world, evaluate it on held-out scenes, and show what it sees."""

import shutil
import sys
import time
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir

from lav2.cli import CONF, clear_errors, quiet, register_resolvers
from lav2.evaluation.run import evaluate
from lav2.run_folder import CONFIG, RECORD
from lav2.training.run import train

FOLDER = Path("outputs/demo")
# What a demo leaves in it; `python train.py experiment=demo` puts runs and sweeps of the user's own beside it.
OWN = ("metrics.csv", "parameters.json", "data_problems.json", "checkpoints", "adapter", "evaluation", "wandb")
OWN += ("report.html", RECORD, CONFIG)


def main() -> None:
    register_resolvers()
    quiet()
    start = time.monotonic()
    # A demo that was stopped goes on; one that came to its end starts anew.
    stopped = any(FOLDER.glob("checkpoints/*.ckpt")) and not (FOLDER / "report.html").exists()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        training = compose("train", ["experiment=demo", *([f"resume={FOLDER}"] if stopped else []), *sys.argv[1:]])
        evaluation = compose("evaluate", ["eval=demo", f"run={FOLDER}"])
    if not stopped and (aside := set_aside(FOLDER)):
        print(f"the demo before is now in {aside}")
    train(training, FOLDER)
    scores = evaluate(evaluation)
    shutil.copyfile(FOLDER / "evaluation" / "demo" / "report.html", FOLDER / "report.html")
    minutes = (time.monotonic() - start) / 60
    print(
        f"\nIn {minutes:.1f} minutes, from captions and language-only instructions, V2 learnt to see:\n"
        f"  {scores['color_shape_f1']:.0%} of colors and shapes named right (F1; "
        f"{scores['color_shape_f1_shuffled']:.0%} with the images shuffled), "
        f"{scores['relation_accuracy']:.0%} of the stated relations hold "
        f"(chance {scores['relation_chance']:.0%})\n"
        f"  CIDEr {scores['CIDEr']:.2f}, BLEU-4 {scores['Bleu_4']:.2f} on {scores['scenes']} held-out scenes\n"
        f"  {scores['question_accuracy']:.0%} of questions about images answered right, which it was never trained on "
        f"({scores['question_accuracy_caption']:.0%} with its own caption as context, "
        f"{scores['question_accuracy_blind']:.0%} blind)\n"
        f"Look at {FOLDER / 'report.html'}"
    )


def set_aside(folder: Path) -> Path | None:
    """Move the demo in ``folder`` into a folder there, named by the time of its last change; what else is there stays.

    Returns:
        The new folder, or ``None`` where there is no demo.
    """
    left = [folder / name for name in OWN if (folder / name).exists()]
    if not left:
        return None
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in left))
    aside = folder / last.strftime("%Y-%m-%d_%H-%M-%S_%f")
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    return aside


if __name__ == "__main__":
    with clear_errors():
        main()
