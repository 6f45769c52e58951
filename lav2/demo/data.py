"""The embedded world on disk, in the formats real data has, so that training on it takes real data's path."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from lav2.demo import language, world
from lav2.demo.language import DESCRIBE, DETAIL, captions, details, instructions
from lav2.demo.world import Item, Scene, Sign, render, sample_scenes
from lav2.errors import UserError
from lav2.training.data import JointData

# The code that decides what a world looks like: a world drawn by other code is drawn again
MAKERS = [Path(module.__file__) for module in (language, world)]
PICTURE_SIZE = 224  # pixels: large enough for a person and an OCR


def write_world(folder: str | Path, training: int, held_out: int, instruction_count: int, seed: int) -> Path:
    """Draw the world into ``folder``, once; what is there already is left alone.

    ``train/`` and ``heldout/`` share no scene. Each holds ``images/``, ``captions.json`` (COCO's format, five
    references a picture), ``details.json`` (COCO's format, captions of several sentences) and ``scenes.json`` (what is
    in each picture); ``train/`` also holds ``instructions.json`` (Alpaca's format, language only).

    Args:
        training, held_out: numbers of scenes.
        instruction_count: number of instructions, about texts on the training scenes.
        seed: of everything.
    """
    folder = Path(folder)
    settings = {"training": training, "held_out": held_out, "instructions": instruction_count, "seed": seed}
    settings["made_by"] = hashlib.sha256(b"".join(path.read_bytes() for path in MAKERS)).hexdigest()[:16]
    stamp = folder / "world.json"
    if holds(stamp, settings):
        return folder
    if folder.exists() and not stamp.is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something other than the embedded world; set data.folder to a new folder")
    drawn = folder.with_name(f".{folder.name}-drawing-{os.getpid()}")  # renamed when complete: what is there is whole
    shutil.rmtree(drawn, ignore_errors=True)
    unseen = sample_scenes(held_out, seed + 1)  # first, so that rare kinds of scenes are held out as well
    scenes = sample_scenes(training, seed, exclude=frozenset(unseen))
    write_split(drawn / "heldout", unseen, seed + 1)
    write_split(drawn / "train", scenes, seed)
    told = instructions(scenes, instruction_count, seed)
    (drawn / "train" / "instructions.json").write_text(json.dumps(told, indent=1))
    (drawn / stamp.name).write_text(json.dumps(settings))
    if holds(stamp, settings):  # another run, which started with this one, has been faster and reads it by now
        shutil.rmtree(drawn)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        drawn.rename(folder)
    return folder


def holds(stamp: Path, settings: dict[str, Any]) -> bool:
    """Whether the world with these settings is there."""
    return stamp.is_file() and json.loads(stamp.read_text()) == settings


def write_split(folder: Path, scenes: list[Scene], seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    names = [f"{index:06d}.png" for index in range(len(scenes))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(draw, scenes, [folder / "images" / name for name in names], chunksize=64)
        for _ in track(drawn, f"drawing {folder.name} scenes", total=len(scenes)):
            pass
    for file, describe in (("captions.json", captions), ("details.json", details)):
        annotations = [
            {"image_id": index, "caption": text}
            for index, scene in enumerate(scenes)
            for text in describe(scene, random.Random(f"{seed} {file} {index}"))
        ]
        images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
        numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
        (folder / file).write_text(json.dumps({"images": images, "annotations": numbered}))
    truth = {name: dataclasses.asdict(scene) for name, scene in zip(names, scenes, strict=True)}
    (folder / "scenes.json").write_text(json.dumps(truth))


def draw(scene: Scene, path: Path) -> None:
    render(scene, PICTURE_SIZE).save(path)


def read_scenes(folder: Path) -> dict[str, Scene]:
    """File name → scene, as :func:`write_world` wrote it."""
    return {
        name: Scene(
            tuple(Item(**item) for item in scene["items"]), Sign(**scene["sign"]) if scene["sign"] is not None else None
        )
        for name, scene in json.loads((folder / "scenes.json").read_text()).items()
    }


class WorldData(JointData):
    """The embedded world as the data of a run: drawn when it is first needed, then read like any other.

    Args:
        folder: where it is drawn.
        training, held_out, instruction_count, world_seed: see :func:`write_world`.
        settings: see :class:`lav2.training.data.JointData`.
    """

    def __init__(
        self, folder: str, training: int, held_out: int, instruction_count: int, world_seed: int, **settings: Any
    ):
        self.folder = Path(folder)
        self.draw = partial(write_world, folder, training, held_out, instruction_count, world_seed)
        train = self.folder / "train"
        sources: Sequence[dict[str, str]] = [
            {"annotations": str(train / "captions.json"), "images": str(train / "images"), "prompt": DESCRIBE},
            {"annotations": str(train / "details.json"), "images": str(train / "images"), "prompt": DETAIL},
        ]
        super().__init__(captions=sources, instructions=[str(train / "instructions.json")], **settings)

    def missing_files(self) -> list[str]:
        return []  # they are drawn when needed

    def prepare_data(self) -> None:
        self.draw()  # on one process of a node, before the others look for it

    def setup(self, stage: str | None = None) -> None:
        self.draw()
        super().setup(stage)
