"""What a model has seen of a scene, read from its words, and whether it answers questions about it."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lav2.demo.language import parse, questions
from lav2.demo.world import Scene, relation

RELATIONS = ("above", "below", "to the left of", "to the right of")


def caption_scores(captions: Mapping[str, str], scenes: Mapping[str, Scene]) -> dict[str, float]:
    """How true captions are of their scenes.

    ``color_shape_f1``: F1, over all scenes together, of the (color, shape) pairs that the captions name.
    ``color_shape_exact``: the fraction of scenes whose pairs are named all and only.
    ``relation_accuracy``: of the relations that captions state, the fraction that hold (a relation of something that
    is not there does not); ``relations_stated`` counts them, and ``relation_chance`` is what guessing one of the four
    gives.
    """
    named = there = right = exact = stated = hold = 0
    for name, scene in scenes.items():
        pairs, statements = parse(captions[name])
        truth = {(item.color, item.shape) for item in scene.items}
        named, there, right = named + len(pairs), there + len(truth), right + len(pairs & truth)
        exact += pairs == truth
        items = {item.shape: item for item in scene.items}
        for subject, stated_relation, other in statements:
            stated += 1
            known = subject in items and other in items and subject != other
            hold += known and relation(items[subject], items[other]) == stated_relation
    return {
        "color_shape_f1": 2 * right / max(named + there, 1),
        "color_shape_exact": exact / len(scenes),
        "relation_accuracy": hold / max(stated, 1),
        "relations_stated": stated,
        "relation_chance": 1 / len(RELATIONS),
    }


def shuffled(names: list[str], seed: int) -> dict[str, str]:
    """Each name → another one, as when images are shuffled among scenes."""
    order = random.Random(seed).sample(names, len(names))
    return dict(zip(order, order[1:] + order[:1], strict=True))


@dataclass(frozen=True)
class Question:
    """A question about the picture ``name`` and the sentence that answers it."""

    name: str
    kind: str
    text: str
    answer: str

    def is_right(self, prediction: str) -> bool:
        """Whether the first sentence of ``prediction`` is the answer; of a yes-or-no question, its first word."""
        first = re.split(r"(?<=\.)\s", prediction.strip(), maxsplit=1)[0]
        if self.kind == "there":
            return normalised(first).split(" ")[0] == normalised(self.answer).split(" ")[0]
        return normalised(first) == normalised(self.answer)


def normalised(text: str) -> str:
    return re.sub(r"[^\w ]", "", text.lower())


def ask(scenes: Mapping[str, Scene], count: int, seed: int, kinds: tuple[str, ...]) -> list[Question]:
    """``count`` questions on different scenes, each kind equally often."""
    rng = random.Random(seed)
    asked: list[Question] = []
    for name in rng.sample(sorted(scenes), len(scenes)):
        kind = kinds[len(asked) % len(kinds)]
        fitting = [question for question in questions(scenes[name], rng) if question[0] == kind]
        if fitting:
            asked.append(Question(name, *rng.choice(fitting)))
        if len(asked) == count:
            break
    return asked
