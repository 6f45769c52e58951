"""Every text about the embedded world: captions, questions and answers, instructions, and the parser that scores them.

A statement has one form wherever it occurs. "The circle is red." is a sentence of a detailed caption and the answer to
"What color is the circle?" alike. So a model that learned to caption pictures, and to answer questions about written
descriptions, has met every part of an answer about a picture without ever seeing a question beside a picture.
"""

import random
import re

from lav2.demo.facts import FACTS, LISTS
from lav2.demo.world import COLORS, SHAPES, SIGN_NUMBERS, SIGN_WORDS, SIZES, Item, Scene, Sign, relation

OPPOSITES = {
    "above": "below",
    "below": "above",
    "to the left of": "to the right of",
    "to the right of": "to the left of",
}
OPENINGS = ("There is ", "We see ", "The scene shows ", "Here is ")
QUESTION_FORMS = {
    "color": ("What color is the {}?", "What is the color of the {}?"),
    "shape": ("What shape is {}?", "Which shape is {}?"),
    "size": ("How large is the {}?", "What size is the {}?"),
    "where": ("Where is the {}?",),
    "count": ("How many shapes are there?", "How many shapes do we see?"),
    "sign": ("What does the sign say?", "What is written on the sign?"),
}
QUESTION_WEIGHTS = {"color": 4, "where": 4, "there": 3, "shape": 2}  # of the kinds in training texts; others 1


def article(word: str) -> str:
    """`word` after its indefinite article: "a red", "an orange"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def noun(item: Item, size: bool = False) -> str:
    """ "a red circle", or "a small red circle"."""
    return article(f"{item.size + ' ' if size else ''}{item.color} {item.shape}")


# What asks for a caption, short or detailed: of a picture, and in language-only tasks of a text
DESCRIBE, DETAIL = "Describe the scene.", "Describe the scene in detail."

# Captions ------------------------------------------------------------------------------------------------------------


def caption(scene: Scene, rng: random.Random, unplaced: int = 2) -> str:
    """One short caption: color and shape of every item, in either order, mostly where they lie, at times their sizes;
    "a sign" when there is one, never what it says. Of a pair's 5 + ``unplaced``, 5 say where its items lie."""
    items = rng.sample(scene.items, len(scene.items))
    sizes = rng.random() < 0.3
    first = noun(items[0], sizes)
    opening = rng.choice(OPENINGS) if rng.random() < 0.4 else ""
    if len(items) == 1:
        form = f"{opening}{first}"
        return sentence(f"{form} and a sign" if scene.sign else form)
    second, place = noun(items[1], sizes), relation(items[0], items[1])
    forms = [f"{opening}{first} {place} {second}"] * 3 + [f"{opening}{first} and {second}"] * unplaced
    forms += [f"{first} is {place} {second}", f"{opening}{first} with {second} {OPPOSITES[place]} it"]
    form = rng.choice(forms)
    return sentence(f"{form}, and a sign" if scene.sign else form)


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five short captions of a scene, all different: its references. Most of a pair say where its items lie."""
    texts: dict[str, None] = {}
    while len(texts) < 5:
        texts[caption(scene, rng, unplaced=1)] = None
    return list(texts)


def details(scene: Scene, rng: random.Random) -> list[str]:
    """Six detailed captions: one to four true sentences each, in random order, in the very form of answers."""
    known = statements(scene)
    return [" ".join(rng.sample(known, rng.randint(1, 4))) for _ in range(6)]


def statements(scene: Scene) -> list[str]:
    """All that a detailed caption may say about a scene."""
    texts = [f"There is {noun(item)}." for item in scene.items]
    texts += [answer for kind, _, answer in truths(scene) if kind != "sign"]
    return texts + ["There is a sign."] * bool(scene.sign)


def color_statement(item: Item, rng: random.Random) -> str:
    """One of the two sentences that tie a color to a shape."""
    return rng.choice((f"The {item.shape} is {item.color}.", f"The {item.color} shape is {article(item.shape)}."))


def description(scene: Scene, rng: random.Random) -> str:
    """What a person who sees the scene might write: a short caption, full sentences or both, and what the sign says."""
    form = rng.random()
    if form < 0.5:
        texts = [caption(scene, rng)]
    else:
        texts = [caption(scene, rng)] if form < 0.7 else [color_statement(item, rng) for item in scene.items]
        others = [text for text in statements(scene) if text not in texts]
        texts += rng.sample(others, min(rng.randint(1, 3), len(others)))
        rng.shuffle(texts)
    if scene.sign:
        words = scene.sign.text
        forms = ("The sign says {}.", "The sign says {}.", "A sign says {}.", "Text on the sign: {}")
        texts.append(rng.choice(forms).format(words))
    return rng.choice((" ", " ", "\n")).join(texts)


# Questions -----------------------------------------------------------------------------------------------------------


def truths(scene: Scene) -> list[tuple[str, str, str]]:
    """(kind, what the question names, the full sentence that answers it) for all that is so in a scene."""
    known = []
    for item in scene.items:
        known.append(("color", item.shape, f"The {item.shape} is {item.color}."))
        known.append(("shape", item.color, f"The {item.color} shape is {article(item.shape)}."))
        known.append(("size", item.shape, f"The {item.shape} is {item.size}."))
    if len(scene.items) == 2:
        for a, b in (scene.items, scene.items[::-1]):
            known.append(("where", a.shape, f"The {a.shape} is {relation(a, b)} the {b.shape}."))
    known.append(("count", "", "There is one shape." if len(scene.items) == 1 else "There are two shapes."))
    if scene.sign:
        known.append(("sign", scene.sign.text, f"The sign says {scene.sign.text}."))
    return known


def questions(scene: Scene, rng: random.Random, text: str | None = None) -> list[tuple[str, str, str]]:
    """(kind, question, answer) about a picture of the scene or, given a description `text`, about what it tells.

    Kinds: color, shape, size, where, count, there (is there …? yes or no) and sign. Answers are full sentences.
    """
    asked = []
    for kind, name, answer in truths(scene):
        if text is None or tells(text, kind, name):
            asked.append((kind, rng.choice(QUESTION_FORMS[kind]).format(name), answer))
    present = [f"{item.color} {item.shape}" for item in scene.items] + [item.shape for item in scene.items]
    colors, shapes = {item.color for item in scene.items}, {item.shape for item in scene.items}
    other_color = rng.choice([color for color in COLORS if color not in colors])
    other_shape = rng.choice([shape for shape in SHAPES if shape not in shapes])
    item = rng.choice(scene.items)
    absent = [f"{other_color} {item.shape}", f"{item.color} {other_shape}", f"{other_color} {other_shape}", other_shape]
    if len(scene.items) == 2:
        absent.append(f"{scene.items[0].color} {scene.items[1].shape}")
    (present if scene.sign else absent).append("sign")
    for name in rng.sample(present, 2):
        asked.append(("there", f"Is there {article(name)}?", f"Yes, there is {article(name)}."))
    for name in rng.sample(absent, 2):
        asked.append(("there", f"Is there {article(name)}?", f"No, there is no {name}."))
    return asked


def tells(text: str, kind: str, name: str) -> bool:
    """Whether a description tells what a question of this kind about `name` asks; some leave out sizes or places."""
    if kind == "size":
        return re.search(rf"\b(large|small) (\w+ )?{name}\b|\b{name} is (large|small)\b", text) is not None
    if kind == "where":
        return bool(parse(text)[1])
    if kind == "sign":
        return name in text
    return True


# Instructions --------------------------------------------------------------------------------------------------------


def instructions(scenes: list[Scene], count: int, seed: int) -> list[dict[str, str]]:
    """`count` language-only samples in Alpaca's format: mostly questions about written descriptions of `scenes`, also
    rewriting, lists and small-world facts. No sample speaks of anything to look at. Same arguments, same samples."""
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        task = rng.random()
        if task < 0.12:
            instruction, output = rng.choice(FACTS + LISTS)
            samples.append({"instruction": instruction, "input": "", "output": output})
            continue
        if (
            task < 0.24
        ):  # with no text to go by, any scene will do: the form of a description, told apart from its content
            scene = rng.choice(scenes)
            instruction, output = rng.choice(
                ((DESCRIBE, caption(scene, rng, unplaced=1)), (DETAIL, rng.choice(details(scene, rng))))
            )
            samples.append({"instruction": instruction, "input": "", "output": output})
            continue
        scene = vary_sign(rng.choice(scenes), rng)
        instruction, text, output = question_task(scene, rng) if task < 0.78 else rng.choice(TEXT_TASKS)(scene, rng)
        samples.append({"instruction": instruction, "input": text, "output": output})
    return samples


def vary_sign(scene: Scene, rng: random.Random) -> Scene:
    """The scene with another sign, at times a made-up word, so that reading a sign must be copying."""
    if scene.sign is None:
        return scene
    made_up = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(2, 6)))
    text = rng.choice((rng.choice(SIGN_WORDS), rng.choice(SIGN_NUMBERS), made_up))
    return Scene(scene.items, Sign(text, scene.sign.row, scene.sign.column))


def pick_question(scene: Scene, rng: random.Random, text: str) -> tuple[str, str, str]:
    """One question `text` answers; the kinds that take the most reading are asked more often."""
    asked = questions(scene, rng, text)
    kinds = sorted({kind for kind, _, _ in asked})
    kind = rng.choices(kinds, weights=[QUESTION_WEIGHTS.get(kind, 1) for kind in kinds])[0]
    return rng.choice([one for one in asked if one[0] == kind])


def question_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """A question, the description that answers it, and the answer: a full sentence, one time in ten a word."""
    text = description(scene, rng)
    kind, question, answer = pick_question(scene, rng, text)
    if rng.random() < 0.1:
        return f"Answer in one word. {question}", text, short_answer(kind, answer)
    return question, text, answer


def short_answer(kind: str, answer: str) -> str:
    """The word of a full answer that matters: "Red." for "The circle is red."."""
    words = answer.rstrip(".").replace(",", "").split()
    if kind == "where":
        return words[5 if words[3] == "to" else 3].capitalize() + "."
    index = {"there": 0, "count": 2}.get(kind, -1)
    return words[index][0].upper() + words[index][1:] + "."


def describe_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """Full sentences that tell everything → one short caption."""
    texts = [color_statement(item, rng) for item in scene.items]
    texts += [f"The {item.shape} is {item.size}." for item in scene.items]
    if len(scene.items) == 2:
        a, b = rng.sample(scene.items, 2)
        texts.append(f"The {a.shape} is {relation(a, b)} the {b.shape}.")
    texts += ["There is a sign."] * bool(scene.sign)
    rng.shuffle(texts)
    instruction = rng.choice((DESCRIBE, DESCRIBE, "Summarize the text."))
    return instruction, " ".join(texts), caption(scene, rng, unplaced=1)


def detail_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """One caption that tells everything → full sentences."""
    items = rng.sample(scene.items, len(scene.items))
    joint = f" {relation(*items)} " if len(items) == 2 else ""
    text = joint.join(noun(item, size=True) for item in items) + (" and a sign" if scene.sign else "")
    return DETAIL, sentence(text), rng.choice(details(scene, rng))


def swap_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """The same said from the other item's side; of a single item the shorter sentence."""
    if len(scene.items) == 1:
        return shorten_task(scene, rng)
    a, b = rng.sample(scene.items, 2)
    there, back = rng.choice((("and", "and"), (relation(a, b), relation(b, a))))
    return "Rewrite the sentence.", sentence(f"{noun(a)} {there} {noun(b)}"), sentence(f"{noun(b)} {back} {noun(a)}")


def shorten_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """A sentence without its opening and its sizes."""
    items = rng.sample(scene.items, len(scene.items))
    joint = f" {relation(*items)} " if len(items) == 2 else ""
    text = sentence(rng.choice(OPENINGS) + joint.join(noun(item, size=True) for item in items))
    return "Make the sentence shorter.", text, sentence(joint.join(noun(item) for item in items))


def list_task(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """The shapes or colors of a description, in its order."""
    text = description(scene, rng)
    field = rng.choice(("shape", "color"))
    order = sorted((getattr(item, field) for item in scene.items), key=text.index)
    return f"List the {field}s.", text, sentence(", ".join(order))


TEXT_TASKS = (describe_task, describe_task, detail_task, detail_task, swap_task, shorten_task, list_task)


# Reading captions ----------------------------------------------------------------------------------------------------

_COLOR, _SHAPE, _SIZE = "|".join(COLORS), "|".join(SHAPES), "|".join(SIZES)
_PLACE = "above|below|to the left of|to the right of"
_ITEM = re.compile(rf"(?:a|an|the|one) (?:(?:{_SIZE}) )?(?:(?:{_COLOR}) )?({_SHAPE})")


def parse(text: str) -> tuple[set[tuple[str, str]], list[tuple[str, str, str]]]:
    """What a caption states: the (color, shape) pairs, and (shape, relation, shape) for where things lie.

    Reads short and detailed captions and answers; what a text denies ("there is no red circle") is not stated.
    """
    text = " ".join(text.lower().split())
    text = re.sub(rf"\bno (?:(?:{_SIZE}) )?(?:(?:{_COLOR}) )?(?:{_SHAPE})", "", text)
    pairs = set(re.findall(rf"\b({_COLOR}) ({_SHAPE})\b", text))
    pairs |= {(color, shape) for shape, color in re.findall(rf"\bthe ({_SHAPE}) is ({_COLOR})\b", text)}
    pairs |= set(re.findall(rf"\bthe ({_COLOR}) shape is an? ({_SHAPE})\b", text))
    places = []
    for part in text.split("."):
        part = _ITEM.sub(r"<\1>", part)
        places += re.findall(rf"<(\w+)> (?:is )?({_PLACE}) <(\w+)>", part)
        places += [(b, place, a) for a, b, place in re.findall(rf"<(\w+)> with <(\w+)> ({_PLACE}) it", part)]
    return pairs, places
