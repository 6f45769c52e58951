"""Conversations about texts on the embedded world: a follow-up speaks of "it", which only the turns before explain.

"A red star is above a blue cross. Is there a cross?" – "Yes, there is a cross." – "What color is it?" – "The cross is
blue." The answers have the very form that they have elsewhere in this world (:mod:`lav2.demo.language`).
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from lav2.data.conversations import ASSISTANT, HUMAN
from lav2.data.examples import Turn
from lav2.demo.data import WorldData, read_scenes
from lav2.demo.language import article, description, pick_question, tells
from lav2.demo.world import Scene
from lav2.disk import write_whole


def follow_up(scene: Scene, rng: random.Random) -> list[Turn]:
    """Two or three exchanges about one item: the first tells of the scene and names the item by its shape, the others
    ask for its color and, where the text tells it, for its size."""
    item = rng.choice(scene.items)
    text = description(replace(scene, sign=None), rng)
    opening = rng.choice(("Is there {}?", "Do we see {}?")).format(article(item.shape))
    later = [Turn("What color is it?", "", f"The {item.shape} is {item.color}.")]
    if tells(text, "size", item.shape):
        later.append(Turn("How large is it?", "", f"The {item.shape} is {item.size}."))
    rng.shuffle(later)
    return [Turn(f"{text}\n{opening}", "", f"Yes, there is {article(item.shape)}."), *later]


def interview(scene: Scene, rng: random.Random) -> list[Turn]:
    """Two or three questions about a text that the first of them tells; each says what it is about."""
    scene = replace(scene, sign=None)
    text = description(scene, rng)
    asked = {pick_question(scene, rng, text)[1:] for _ in range(rng.randint(2, 3))}
    turns = [Turn(question, "", answer) for question, answer in sorted(asked)]
    rng.shuffle(turns)
    return [replace(turns[0], instruction=f"{text}\n{turns[0].instruction}"), *turns[1:]]


def dialogues(scenes: list[Scene], count: int, seed: int) -> list[list[Turn]]:
    """``count`` conversations about texts on ``scenes``, of both kinds. Same arguments, same conversations."""
    rng = random.Random(seed)
    return [rng.choice((follow_up, interview))(rng.choice(scenes), rng) for _ in range(count)]


def write_dialogues(path: Path, told: list[list[Turn]]) -> None:
    """Write conversations in ShareGPT's format."""
    entries = [
        {
            "id": str(number),
            "conversations": [
                {"from": speaker, "value": value}
                for turn in turns
                for speaker, value in ((HUMAN, turn.instruction), (ASSISTANT, turn.response))
            ],
        }
        for number, turns in enumerate(told)
    ]
    write_whole(path, json.dumps(entries, indent=1))  # others may look


class DialogueData(WorldData):
    """The embedded world with conversations among its instructions.

    Args:
        dialogue_count: number of conversations, about texts on the training scenes.
        settings: see :class:`lav2.demo.data.WorldData`.
    """

    def __init__(self, dialogue_count: int, **settings: Any):
        super().__init__(**settings)
        self.dialogue_count, self.world_seed = dialogue_count, settings["world_seed"]
        self.dialogues = self.folder / "train" / f"dialogues_{dialogue_count}.json"
        self.instructions = [*self.instructions, {"format": "sharegpt", "path": str(self.dialogues)}]

    def draw(self) -> None:
        super().draw()
        scenes = list(read_scenes(self.folder / "train").values())
        write_dialogues(self.dialogues, dialogues(scenes, self.dialogue_count, self.world_seed))
