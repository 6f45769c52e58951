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
from lav2.demo.language import DESCRIBE, DETAIL, QUESTION_WEIGHTS, captions, details, instructions, questions
from lav2.demo.world import Item, Scene, Sign, render, sample_scenes
from lav2.disk import write_whole
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
    shutil.rmtree(folder, ignore_errors=True)  # a world of other settings
    drawn = folder.with_name(f".{folder.name}-drawing-{os.getpid()}")  # renamed when complete: what is there is whole
    shutil.rmtree(drawn, ignore_errors=True)
    unseen = sample_scenes(held_out, seed + 1)  # first, so that rare kinds of scenes are held out as well
    scenes = sample_scenes(training, seed, exclude=frozenset(unseen))
    write_split(drawn / "heldout", unseen, seed + 1)
    write_split(drawn / "train", scenes, seed)
    told = instructions(scenes, instruction_count, seed)
    (drawn / "train" / "instructions.json").write_text(json.dumps(told, indent=1))
    (drawn / stamp.name).write_text(json.dumps(settings))
    try:
        drawn.rename(folder)
    except OSError:
        if not holds(stamp, settings):
            raise
        shutil.rmtree(drawn)  # another run, which started with this one, has been faster and reads it by now
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


def write_questions(path: Path, count: int, seed: int) -> None:
    """Write ``count`` questions about the pictures beside ``path`` (in ``train/`` of a world), once, in LLaVA's format.

    V2 does without any; a model that trains on them shows how far one could come. What signs say is left out, which the
    encoder is too coarse to read.
    """
    if path.is_file():
        return
    rng, scenes = random.Random(f"{seed} questions"), list(read_scenes(path.parent).items())
    entries = []
    for _ in range(count):
        name, scene = rng.choice(scenes)
        known = [question for question in questions(scene, rng) if question[0] != "sign"]
        kinds = list(dict.fromkeys(kind for kind, _, _ in known))
        kind = rng.choices(kinds, [QUESTION_WEIGHTS.get(kind, 1) for kind in kinds])[0]
        _, question, answer = rng.choice([one for one in known if one[0] == kind])
        said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        entries.append({"image": name, "conversations": said})
    write_whole(path, json.dumps(entries))


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
        image_questions: number of questions about the training pictures among the instructions; V2 has none.
        settings: see :class:`lav2.training.data.JointData`.
    """

    def __init__(
        self,
        folder: str,
        training: int,
        held_out: int,
        instruction_count: int,
        world_seed: int,
        image_questions: int = 0,
        **settings: Any,
    ):
        self.folder = Path(folder)
        train = self.folder / "train"
        self.write_world = partial(write_world, folder, training, held_out, instruction_count, world_seed)
        self.write_questions = None
        sources: Sequence[dict[str, str]] = [
            {"annotations": str(train / "captions.json"), "images": str(train / "images"), "prompt": DESCRIBE},
            {"annotations": str(train / "details.json"), "images": str(train / "images"), "prompt": DETAIL},
        ]
        told: list[str | dict[str, str]] = [str(train / "instructions.json")]
        if image_questions:
            path = train / f"questions_{image_questions}.json"
            self.write_questions = partial(write_questions, path, image_questions, world_seed)
            told.append({"format": "llava", "path": str(path), "images": str(train / "images")})
        super().__init__(captions=sources, instructions=told, **settings)

    def missing_files(self) -> list[str]:
        return []  # they are drawn when needed

    def draw(self) -> None:
        self.write_world()
        if self.write_questions is not None:
            self.write_questions()

    def prepare_data(self) -> None:
        self.draw()  # on one process of a node, before the others look for it

    def setup(self, stage: str | None = None) -> None:
        self.draw()
        super().setup(stage)
