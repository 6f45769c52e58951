"""What the embedded world's language knows without being told: small facts and lists, as instruction and answer."""

_COLORED = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a banana": "yellow", "coal": "black",
    "blood": "red", "a carrot": "orange", "a plum": "purple", "milk": "white", "the night": "black", "the sea": "blue",
    "a tomato": "red", "a lemon": "yellow", "a leaf": "green", "a pumpkin": "orange", "a raven": "black",
}  # fmt: skip
_OPPOSITES = {
    "large": "small", "above": "below", "left": "right", "black": "white", "hot": "cold", "day": "night", "up": "down",
    "open": "closed", "yes": "no", "fast": "slow", "full": "empty", "old": "new", "long": "short", "loud": "quiet",
}  # fmt: skip
_VOICES = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "bee": "buzz"}
_SIDES = {"triangle": "three", "square": "four", "circle": "no", "cross": "twelve"}
_HOMES = {"fish": "water", "bird": "a nest", "bee": "a hive", "bear": "the forest", "lion": "the grassland"}
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _facts() -> list[tuple[str, str]]:
    facts = []
    for thing, color in _COLORED.items():
        facts.append((f"What color is {thing}?", f"{thing[0].upper()}{thing[1:]} is {color}."))
    for word, other in _OPPOSITES.items():
        for a, b in ((word, other), (other, word)):
            facts.append((f"What is the opposite of {a}?", f"The opposite of {a} is {b}."))
    for animal, voice in _VOICES.items():
        facts.append((f"What does a {animal} say?", f"A {animal} says {voice}."))
    for shape, number in _SIDES.items():
        facts.append((f"How many sides does a {shape} have?", f"A {shape} has {number} sides."))
    for animal, home in _HOMES.items():
        facts.append((f"Where does a {animal} live?", f"A {animal} lives in {home}."))
    for index, after in enumerate(_NUMBERS[1:]):
        facts.append((f"What comes after {_NUMBERS[index]}?", f"{after.capitalize()} comes after {_NUMBERS[index]}."))
    for a in range(1, 5):
        for b in range(1, 6):
            x, y, total = _NUMBERS[a - 1], _NUMBERS[b - 1], _NUMBERS[a + b - 1]
            facts.append((f"What is {x} plus {y}?", f"{x.capitalize()} plus {y} is {total}."))
    return facts


FACTS = _facts()
LISTS = [(f"Count to {_NUMBERS[n - 1]}.", f"{', '.join(_NUMBERS[:n]).capitalize()}.") for n in range(2, 11)]
LISTS += [
    ("Name three colors.", "Red, blue, green."),
    ("Name three shapes.", "Circle, square, star."),
    ("Name two sizes.", "Small, large."),
    ("Name three animals.", "Cow, dog, cat."),
    ("Name three fruits.", "Apple, banana, plum."),
    ("Say hello.", "Hello!"),
    ("Who are you?", "I am a small language model."),
    ("What can you do?", "I can answer questions about shapes, colors and signs."),
]
