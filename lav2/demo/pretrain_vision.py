"""Trains the embedded world's vision encoder: `python -m lav2.demo.pretrain_vision`.

A small open_clip vision transformer learns to see rendered scenes from linear heads on its projected tokens: every
patch tells what lies in its cell of the grid, the class token tells the attributes of each shape in the picture. The
heads are thrown away. The encoder stays frozen ever after, and no caption or question is used here.
"""

import argparse
import json
import time
from pathlib import Path

import open_clip
import torch
from rich import print_json
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lav2.demo.probe import PATCHES, probe
from lav2.demo.world import (
    COLORS,
    GRID,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    relation,
    render,
    sample_scenes,
    sign_box,
)
from lav2.vision import VisionEncoder

MODEL = "lav2-tiny"  # lav2/demo/open_clip/lav2-tiny.json
WEIGHTS = Path(__file__).parent / "weights"
# Classes of each attribute. Number 0 means that there is nothing to tell; a sign is one more shape, without a color.
PATCH_CLASSES = (len(SHAPES) + 2, len(COLORS) + 1, len(SIZES) + 1, len(RELATIONS) + 1, PATCHES + 1, PATCHES + 1)
CLASS_CLASSES = len(SHAPES) * (len(COLORS) + 1, len(SIZES) + 1, len(RELATIONS) + 1, GRID * GRID + 1)


class SceneAttributes(Dataset):
    """Pictures with what their tokens shall tell: pixels, patch labels (36, 6), class token labels (24)."""

    def __init__(self, scenes: list[Scene], preprocess):
        self.scenes = scenes
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        scene = self.scenes[index]
        return self.preprocess(render(scene)), patch_labels(scene), class_labels(scene)


def _attributes(item: Item, scene: Scene) -> list[int]:
    """Color, size, and where the item lies from the other one, each counted from 1; 0 for a lonely item's relation."""
    others = [other for other in scene.items if other != item]
    where = 1 + RELATIONS.index(relation(item, others[0])) if others else 0
    return [1 + COLORS.index(item.color), 1 + tuple(SIZES).index(item.size), where]


def patch_labels(scene: Scene) -> Tensor:
    """(36, 6): shape, color, size and relation of what lies in a patch's cell, then the patch's own row and column."""
    labels = torch.zeros(PATCHES, PATCHES, len(PATCH_CLASSES), dtype=torch.long)
    centers = (torch.arange(PATCHES) + 0.5) / PATCHES
    if scene.sign:
        left, top, right, bottom = (edge / 1000 for edge in sign_box(scene.sign, 1000))
        across, down = (left < centers) & (centers < right), (top < centers) & (centers < bottom)
        labels[..., 0][down[:, None] & across] = len(SHAPES) + 1
    cells = (centers * GRID).long()
    for item in scene.items:
        inside = (cells == item.row)[:, None] & (cells == item.column)
        labels[inside, :4] = torch.tensor([1 + SHAPES.index(item.shape), *_attributes(item, scene)])
    labels[..., 4] = 1 + torch.arange(PATCHES)[:, None]
    labels[..., 5] = 1 + torch.arange(PATCHES)
    return labels.flatten(0, 1)


def class_labels(scene: Scene) -> Tensor:
    """(24): for each shape its color, size, relation and cell, all 0 if the picture does not show it."""
    labels = torch.zeros(len(SHAPES), 4, dtype=torch.long)
    for item in scene.items:
        cell = 1 + GRID * item.row + item.column
        labels[SHAPES.index(item.shape)] = torch.tensor([*_attributes(item, scene), cell])
    return labels.flatten()


def attribute_loss(logits: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Mean cross entropy over attributes: logits (..., sum of classes), labels (..., attributes).

    Most of a picture is background, so "nothing to tell" counts a tenth of anything else.
    """
    losses = []
    for index, part in enumerate(logits.split(classes, dim=-1)):
        weight = torch.ones(classes[index])
        weight[0] = 0.1
        losses.append(nn.functional.cross_entropy(part.flatten(0, -2), labels[..., index].flatten(), weight))
    return torch.stack(losses).mean()


def encode(visual: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels (batch, 3, 72, 72) → the tokens that `VisionEncoder` gives (batch, 37, 96), the class token first."""
    return visual.ln_post(visual.transformer(visual._embeds(pixels))) @ visual.proj


def train(scenes: list[Scene], batch_size: int, learning_rate: float, seed: int) -> nn.Module:
    """The trained visual tower; each scene is seen once."""
    torch.manual_seed(seed)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL)
    visual = model.visual.train()
    width = visual.output_dim
    patch_head, class_head = nn.Linear(width, sum(PATCH_CLASSES)), nn.Linear(width, sum(CLASS_CLASSES))
    matrices = [parameter for parameter in visual.transformer.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in visual.parameters() if all(parameter is not matrix for matrix in matrices)]
    others += [*patch_head.parameters(), *class_head.parameters()]
    loader = DataLoader(SceneAttributes(scenes, preprocess), batch_size, num_workers=1, drop_last=True)
    optimizers = [
        torch.optim.Muon(matrices, learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=len(loader), pct_start=0.1, cycle_momentum=False
        )
        for optimizer in optimizers
    ]
    started = time.monotonic()
    with Progress() as progress:
        task = progress.add_task("vision encoder", total=len(loader))
        for step, (pixels, patches, classes) in enumerate(loader, start=1):
            tokens = encode(visual, pixels)
            patch_loss = attribute_loss(patch_head(tokens[:, 1:]), patches, PATCH_CLASSES)
            class_loss = attribute_loss(class_head(tokens[:, 0]), classes, CLASS_CLASSES)
            (patch_loss + class_loss).backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            progress.update(task, advance=1)
            if step == 20:
                minutes = (time.monotonic() - started) / step * len(loader) / 60
                progress.console.print(f"{len(loader)} steps, about {minutes:.0f} minutes")
            if step % 100 == 0:
                progress.console.print(
                    f"step {step}: patch loss {patch_loss.item():.4f}, class token loss {class_loss.item():.4f}"
                )
    return visual.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for vision.safetensors and its card")
    settings = parser.parse_args()
    held_out = sample_scenes(1000, settings.seed + 1)  # the demo's held-out pictures are the first of these
    scenes = sample_scenes(settings.steps * settings.batch_size, settings.seed, exclude=set(held_out))
    started = time.monotonic()
    visual = train(scenes, settings.batch_size, settings.learning_rate, settings.seed)
    seconds = time.monotonic() - started
    settings.output.mkdir(parents=True, exist_ok=True)
    path = settings.output / "vision.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in visual.state_dict().items()}, path)
    encoder = VisionEncoder(MODEL, path, tokens="patches_and_class")
    card = {
        "model": MODEL,
        "parameters": sum(parameter.numel() for parameter in visual.parameters()),
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "seconds": round(seconds),
        "held_out_scenes": len(held_out),
        "probe": probe(encoder, scenes[-4000:], held_out),
    }
    (settings.output / "vision_card.json").write_text(json.dumps(card, indent=2) + "\n")
    print_json(data=card)


if __name__ == "__main__":
    main()
