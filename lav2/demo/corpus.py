"""The documents on which the embedded LLaMA is pre-trained: much to copy, much to read from its context.

A document is a list of pieces (text, foretold): `foretold` says that the piece follows from the text before it, as an
answer does. Training gives these pieces the greater weight, for what is random teaches a small model little.

The instruction headers occur, but what follows "### Response:" never answers what stands after "### Instruction:": the
base model knows the words of the template and does not follow it. That is left to instruction tuning.
"""

import random
import string

from lav2.demo.facts import FACTS, LISTS
from lav2.demo.language import (
    TEXT_TASKS,
    article,
    captions,
    description,
    details,
    pick_question,
    question_task,
    vary_sign,
)
from lav2.demo.world import COLORS, SHAPES, SIGN_WORDS, Scene

Document = list[tuple[str, bool]]

HEADERS = ("### Instruction:", "### Input:", "### Response:")
_NAMES = ("Ann", "Ben", "Tom", "Mia", "Sam", "Eva")
_PLACES = ("park", "garden", "school", "market", "lake", "house", "farm", "city")
_THINGS = ("ball", "book", "kite", "hat", "boat", "cake", "box", "cup")


def document(scenes: list[Scene], rng: random.Random) -> Document:
    """One random document about one or a few of `scenes`, or about small facts."""
    kinds = (echoes, many_things, paraphrases, reading, question_first, tasks, facts, stories, headers)
    return rng.choices(kinds, weights=(10, 14, 12, 32, 14, 6, 5, 2, 5))[0](scenes, rng)


def echoes(scenes: list[Scene], rng: random.Random) -> Document:
    """Words in no order, made-up ones among them, and the same again: only copying foretells the second half."""
    words = rng.choices(COLORS + SHAPES + _THINGS + _NAMES + SIGN_WORDS, k=rng.randint(4, 12))
    for _ in range(rng.randint(0, 3)):
        words.append("".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(1, 4))))
    rng.shuffle(words)
    text = " ".join(words)
    return [(text, False), (rng.choice(("\n", " ", "\nAgain: ")) + text, True)]


def many_things(scenes: list[Scene], rng: random.Random) -> Document:
    """Three to six colored things, then questions: too many to guess which color belongs to which."""
    number = rng.randint(3, 6)
    things = dict(zip(rng.sample(SHAPES + _THINGS, number), rng.choices(COLORS, k=number), strict=True))
    if rng.random() < 0.5:
        text = " ".join(f"The {thing} is {color}." for thing, color in things.items())
    else:
        text = f"There is {', '.join(article(f'{color} {thing}') for thing, color in things.items())}."
    pieces = [(text, False)]
    for thing in rng.sample(sorted(things), number):
        pieces += [(f"\nWhat color is the {thing}?", False), (f" The {thing} is {things[thing]}.", True)]
    return pieces


def paraphrases(scenes: list[Scene], rng: random.Random) -> Document:
    """Two to four texts about the same scene."""
    scene = _scene(scenes, rng)
    gap = rng.choice((" ", "\n"))
    others = [(gap + _written(scene, rng), True) for _ in range(rng.randint(1, 3))]
    return [(description(scene, rng), False), *others]


def reading(scenes: list[Scene], rng: random.Random) -> Document:
    """A description, then up to five questions that it answers."""
    scene = _scene(scenes, rng)
    text = description(scene, rng)
    asked = sorted({pick_question(scene, rng, text) for _ in range(5)})
    rng.shuffle(asked)
    text_label, question_label, answer_label = rng.choice(
        (("Text: ", "Question: ", "Answer: "), ("Caption: ", "Question: ", "Answer: "), ("", "", ""))
    )
    if text_label and rng.random() < 0.3:
        text_label, question_label, answer_label = "Text:\n", "Question:\n", "Answer:\n"
    pieces = [(text_label + text, False)]
    for _, question, answer in asked:
        # the label's space belongs to the answer's first word, as it does to any word's token
        between, gap = ("\n" + answer_label[:-1], answer_label[-1]) if answer_label else ("", " ")
        pieces += [(f"\n{question_label}{question}{between}", False), (gap + answer, True)]
    return pieces


def question_first(scenes: list[Scene], rng: random.Random) -> Document:
    """One question, mostly before the text that answers it."""
    return _layout(*question_task(_scene(scenes, rng), rng), rng)


def tasks(scenes: list[Scene], rng: random.Random) -> Document:
    """A text rewritten, shortened, summarized or listed."""
    return _layout(*rng.choice(TEXT_TASKS)(_scene(scenes, rng), rng), rng)


def facts(scenes: list[Scene], rng: random.Random) -> Document:
    """Three to six facts or lists with their questions."""
    before, between, gap = rng.choice((("Question: ", "\nAnswer:", " "), ("", "", " "), ("", "", "\n")))
    pieces = []
    for _ in range(rng.randint(3, 6)):
        question, answer = rng.choice(FACTS if rng.random() < 0.8 else LISTS)
        pieces += [(f"{before}{question}{between}", False), (gap + answer, True), ("\n", False)]
    return pieces[:-1]


def stories(scenes: list[Scene], rng: random.Random) -> Document:
    """A few plain sentences about people, so that not everything is about shapes."""
    name, friend = rng.sample(_NAMES, 2)
    thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
    owner, age = rng.choice((name, friend)), rng.choice(("new", "old"))
    start = f"{name} went to the {place} with {friend}. {owner} had a {age} {thing}."
    end = f" They played with the {thing} at the {place} and then {name} and {friend} went home. It was a good day."
    return [(start, False), (end, True)]


def headers(scenes: list[Scene], rng: random.Random) -> Document:
    """Instruction headers over lines that have nothing to do with one another."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        scene = _scene(scenes, rng)
        line = rng.choice((_written(scene, rng), question_task(scene, rng)[0], rng.choice(FACTS)[0]))
        lines.append(f"{rng.choice(HEADERS)}{rng.choice(('', ' ', chr(10)))}{line}")
    return [("\n\n".join(lines), False)]


def _scene(scenes: list[Scene], rng: random.Random) -> Scene:
    return vary_sign(rng.choice(scenes), rng)


def _written(scene: Scene, rng: random.Random) -> str:
    """A text about a scene, short or detailed."""
    return rng.choice((rng.choice(captions(scene, rng)), details(scene, rng)[0], description(scene, rng)))


def _layout(question: str, text: str, answer: str, rng: random.Random) -> Document:
    gap = rng.choice((" ", " ", "\n"))
    parts = [f"Question:{gap}{question}", f"Text:{gap}{text}"]
    layouts = [(parts, "\nAnswer:", gap), (parts[::-1], "\nAnswer:", gap), ([question, text], "", "\n")]
    lines, label, gap = rng.choice(layouts)
    return [("\n".join(lines) + label, False), (gap + answer, True)]
