"""The documents on which the embedded LLaMA is pre-trained: much to copy, much to read from its context.

The instruction headers occur, but what follows "### Response:" never answers what stands after "### Instruction:": the
base model knows the words of the template and does not follow it. That is left to instruction tuning.
"""

import random

from lav2.demo.facts import FACTS, LISTS
from lav2.demo.language import TEXT_TASKS, captions, description, details, pick_question, question_task, vary_sign
from lav2.demo.world import Scene

HEADERS = ("### Instruction:", "### Input:", "### Response:")
_NAMES = ("Ann", "Ben", "Tom", "Mia", "Sam", "Eva")
_PLACES = ("park", "garden", "school", "market", "lake", "house", "farm", "city")
_THINGS = ("ball", "book", "kite", "hat", "boat", "cake", "box", "cup")


def document(scenes: list[Scene], rng: random.Random) -> str:
    """One random document about one or a few of `scenes`, or about small facts; lines are separated by newlines."""
    kinds = (paraphrases, reading, question_first, tasks, facts, stories, headers)
    return rng.choices(kinds, weights=(22, 38, 16, 8, 6, 4, 6))[0](scenes, rng)


def _scene(scenes: list[Scene], rng: random.Random) -> Scene:
    return vary_sign(rng.choice(scenes), rng)


def _written(scene: Scene, rng: random.Random) -> str:
    """A text about a scene, short or detailed."""
    return rng.choice((rng.choice(captions(scene, rng)), details(scene, rng)[0], description(scene, rng)))


def paraphrases(scenes: list[Scene], rng: random.Random) -> str:
    """Two to four texts about the same scene: all but the first can partly be copied."""
    scene = _scene(scenes, rng)
    return rng.choice((" ", "\n")).join(_written(scene, rng) for _ in range(rng.randint(2, 4)))


def reading(scenes: list[Scene], rng: random.Random) -> str:
    """A description, then two to five questions that it answers."""
    scene = _scene(scenes, rng)
    text = description(scene, rng)
    asked = {pick_question(scene, rng, text) for _ in range(rng.randint(2, 5))}
    asked = [(question, answer) for _, question, answer in sorted(asked)]
    rng.shuffle(asked)
    if rng.random() < 0.7:
        label, gap = rng.choice(("Text", "Caption")), _gap(rng)
        parts = [f"Question:{gap}{question}\nAnswer:{gap}{answer}" for question, answer in asked]
        return "\n".join([f"{label}:{gap}{text}"] + parts)
    return "\n".join([text] + [f"{question} {answer}" for question, answer in asked])


def question_first(scenes: list[Scene], rng: random.Random) -> str:
    """One to three questions, each before the text that answers it."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        question, text, answer = question_task(_scene(scenes, rng), rng)
        parts.append(_layout(question, text, answer, rng))
    return "\n".join(parts)


def tasks(scenes: list[Scene], rng: random.Random) -> str:
    """Texts rewritten, shortened, summarized and listed."""
    parts = []
    for _ in range(2):
        parts.append(_layout(*rng.choice(TEXT_TASKS)(_scene(scenes, rng), rng), rng))
    return "\n".join(parts)


def _layout(question: str, text: str, answer: str, rng: random.Random) -> str:
    gap = _gap(rng)
    parts = (f"Question:{gap}{question}", f"Text:{gap}{text}", f"Answer:{gap}{answer}")
    layouts = (parts, (parts[1], parts[0], parts[2]), (question, text, answer))
    return "\n".join(rng.choice(layouts))


def _gap(rng: random.Random) -> str:
    """What stands after a label: mostly a space, else a new line."""
    return rng.choice((" ", " ", "\n"))


def facts(scenes: list[Scene], rng: random.Random) -> str:
    """Three to six facts or lists, with their questions or without."""
    chosen = [rng.choice(FACTS if rng.random() < 0.8 else LISTS) for _ in range(rng.randint(3, 6))]
    form = rng.choice(("Question: {}\nAnswer: {}", "{} {}", "{}\n{}"))
    return "\n".join(form.format(question, answer) for question, answer in chosen)


def stories(scenes: list[Scene], rng: random.Random) -> str:
    """A few plain sentences about people, so that not everything is about shapes."""
    name, friend = rng.sample(_NAMES, 2)
    thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
    owner, age = rng.choice((name, friend)), rng.choice(("new", "old"))
    return (
        f"{name} went to the {place} with {friend}. {owner} had a {age} {thing}. They played with the {thing} at the "
        f"{place} and then {name} and {friend} went home. It was a good day."
    )


def headers(scenes: list[Scene], rng: random.Random) -> str:
    """Instruction headers over lines that have nothing to do with one another."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        scene = _scene(scenes, rng)
        line = rng.choice((_written(scene, rng), question_task(scene, rng)[0], rng.choice(FACTS)[0]))
        lines.append(f"{rng.choice(HEADERS)}{rng.choice(('', _gap(rng)))}{line}")
    return "\n\n".join(lines)
