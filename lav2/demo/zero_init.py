"""``make zero-init``: zero-initialised attention in the embedded world's ViT and RoBERTa (V1 paper: beyond LLaMA).

Each task is learnt twice from the same frozen backbone and samples: by a linear head alone, and by the same head with
prompts in the backbone's attention. Held-out scenes are scored, which no backbone was pre-trained on.
"""

import json
import random
import sys
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from lav2.adapter.classifier import ZeroInitClassifier
from lav2.cli import CONF, clear_errors, quiet, register_resolvers
from lav2.demo.language import caption
from lav2.demo.pretrain_vision import MODEL, WEIGHTS
from lav2.demo.world import COLORS, Scene, render, sample_scenes
from lav2.errors import UserError
from lav2.training.classification import ClassificationModule, tokenized
from lav2.vision import VisionEncoder

METHODS = {"linear": "frozen, linear head", "zero_init": "zero-initialised attention"}


def pairs(split: str, count: int) -> list[Scene]:
    """Up to ``count`` scenes with two items: ``train``, ``dev``, or ``test`` of those that pre-training left out."""
    test = sample_scenes(1000, seed=1)
    dev = sample_scenes(2500, seed=2, exclude=frozenset(test))
    # of each two draws one at least has two items
    drawn = {"test": test, "dev": dev}.get(split) or sample_scenes(2 * count, 3, frozenset(test + dev))
    return [scene for scene in drawn if len(scene.items) == 2][:count]


class PictureTask:
    """Pictures of two shapes: what color has the one that comes first, as one reads?

    The class token tells the color of each shape and where each lies, so that a linear head would have to multiply.
    """

    classes = COLORS
    collate = None

    def __init__(self):
        self.encoder = VisionEncoder(MODEL, WEIGHTS / "vision.safetensors")
        self.backbone = self.encoder.visual

    def samples(self, split: str, count: int) -> Dataset:
        """(preprocessed picture, class)."""
        scenes = pairs(split, count)
        pictures = [self.encoder.preprocess(render(scene)) for scene in track(scenes, f"drawing {split}")]
        return list(zip(pictures, [COLORS.index(scene.items[0].color) for scene in scenes], strict=True))


class TextTask:
    """Captions of two shapes, "A small red star above a large blue heart.": what color has the large one?

    Which color is told by the word in front of it, wherever the two stand; the state of the first token tells both.
    """

    classes = COLORS

    def __init__(self):
        try:
            from transformers import AutoTokenizer, RobertaForMaskedLM
        except ImportError:
            raise UserError('RoBERTa comes with transformers: pip install -e ".[transformers]"') from None
        folder = WEIGHTS / "roberta"
        self.collate = tokenized(AutoTokenizer.from_pretrained(folder))
        self.backbone = RobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).roberta

    def samples(self, split: str, count: int) -> Dataset:
        """(caption, class); captions of other scenes may read alike, and those of dev and test are none to train on."""
        rng, samples, kept = random.Random(f"captions {split}"), [], set()
        if split == "train":
            kept = {text for other in ("dev", "test") for text, _ in self.samples(other, 1500)}
        for scene in pairs(split, 3 * count):
            large = [item for item in scene.items if item.size == "large"]
            if len(large) != 1:
                continue
            text = caption(scene, rng)
            while "large" not in text:  # some captions leave sizes out
                text = caption(scene, rng)
            if text not in kept:
                samples.append((text, COLORS.index(large[0].color)))
        return samples[:count]


def run(cfg: DictConfig) -> dict[str, Any]:
    """Both methods on one task, each with every seed: the table's two rows."""
    task = instantiate(cfg.task.data)
    train, scored = task.samples("train", cfg.training), task.samples(cfg.split, cfg.scored)
    classes = torch.tensor([label for _, label in scored]).bincount()
    print(f"{cfg.task.title}: {len(train)} samples to train on, {len(scored)} of {cfg.split} to score")
    rows = {}
    for method in METHODS:
        scores, seconds, parameters = [], [], 0
        for seed in cfg.seeds:
            seed_everything(seed, verbose=False)
            layers = 0 if method == "linear" else cfg.prompt_layers
            model = ZeroInitClassifier(task.backbone, len(task.classes), cfg.prompt_length, layers)
            parameters = sum(parameter.numel() for parameter in model.trained().values())
            start = time.monotonic()
            accuracy = fit_and_score(model, cfg, train, scored, seed, cfg.task.learning_rate[method], task.collate)
            seconds.append(time.monotonic() - start)
            scores.append(accuracy)
            model.save(Path(cfg.folder) / cfg.task.name / method / f"seed_{seed}")
            print(f"  {METHODS[method]}, seed {seed}: {accuracy:.3f} in {seconds[-1]:.0f} s")
        rows[method] = {
            "accuracies": [round(score, 4) for score in scores],
            "mean": round(mean(scores), 4),
            "spread": round(stdev(scores), 4) if len(scores) > 1 else None,
            "parameters": parameters,
            "seconds": round(mean(seconds), 1),
        }
    return {"split": cfg.split, "commonest_class": round((classes.max() / classes.sum()).item(), 4), **rows}


def fit_and_score(
    model: ZeroInitClassifier, cfg: DictConfig, train: Dataset, scored: Dataset, seed: int, rate: float, collate: Any
) -> float:
    """Train ``model``; its accuracy on ``scored``."""
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(train, cfg.batch_size, shuffle=True, drop_last=True, generator=order, collate_fn=collate)
    trainer = Trainer(
        max_steps=cfg.steps,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = ClassificationModule(model, rate)
    trainer.fit(module, batches)
    (found,) = trainer.test(module, DataLoader(scored, 250, collate_fn=collate), verbose=False)
    return found["accuracy"]


def show(results: dict[str, Any], seeds: int) -> Table:
    """The table: accuracies of both methods on each task."""
    table = Table("task", "", "accuracy", "trained", "s", title=f"held-out scenes, mean ± deviation of {seeds} seeds")
    for column in table.columns[2:]:
        column.justify = "right"
    for title, result in results.items():
        table.add_row(title, "always the commonest", f"{result['commonest_class']:.3f}", "", "")
        for method, name in METHODS.items():
            row = result[method]
            spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
            table.add_row("", name, f"{row['mean']:.3f}{spread}", f"{row['parameters']:,}", f"{row['seconds']:.0f}")
        table.add_section()
    return table


def main(overrides: list[str]) -> dict[str, Any]:
    """Run the tasks, both or the one that ``overrides`` name; print and write the table."""
    register_resolvers()
    quiet()
    warnings.filterwarnings("ignore", message=".*(in eval mode at the start|no `val_dataloader`).*")
    chosen = any(override.startswith("zero_init=") for override in overrides)
    tasks = [[]] if chosen else [["zero_init=vit"], ["zero_init=roberta"]]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = [compose("zero_init", [*task, *overrides]) for task in tasks]
    results = {cfg.task.title: run(cfg) for cfg in configs}
    folder = Path(configs[0].folder)
    (folder / "zero_init.json").write_text(json.dumps(results, indent=2) + "\n")
    console = Console(record=True, width=110)
    console.print(show(results, len(configs[0].seeds)))
    (folder / "zero_init.txt").write_text(console.export_text())
    return results


if __name__ == "__main__":
    with clear_errors():
        main(sys.argv[1:])
