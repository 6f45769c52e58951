"""The embedded world: pictures of one or two shapes on a 3x3 grid, sometimes with a sign to read."""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lav2.errors import UserError

GRID = 3
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
RGB = {
    "red": (214, 30, 40),
    "blue": (35, 75, 215),
    "green": (25, 145, 60),
    "yellow": (250, 218, 30),
    "purple": (135, 40, 160),
    "orange": (250, 130, 15),
    "black": (25, 25, 28),
    "white": (255, 255, 255),
}
COLORS = tuple(RGB)
RELATIONS = ("above", "below", "to the left of", "to the right of")
SIZES = {"small": 0.55, "large": 0.85}  # share of its cell that a shape fills
_WORDS = (
    "APPLE BAKER BANK BEACH BOAT BOOK BREAD CAFE CAMP CAKE CITY CLUB COFFEE DANGER DOOR EXIT FARM FISH FIRE FLOWER "
    "FOREST FRUIT GARDEN GATE GOLD HELLO HOME HOTEL HOUSE ISLAND KEEP LAKE LIGHT LUNCH MARKET MILK MOON MUSIC NORTH "
    "OCEAN OPEN PARK PAPER PIZZA PLANT QUIET RADIO RIVER SALE SCHOOL SILVER SNOW SOUP SPORT STOP SUGAR TAXI TRAIN "
    "WATER WINTER ZOO"
)
SIGN_WORDS = tuple(_WORDS.split())
SIGN_NUMBERS = tuple(str(number) for number in range(10, 100))


@dataclass(frozen=True)
class Item:
    """One drawn shape: what it is, and the cell of the 3x3 grid it lies in."""

    shape: str
    color: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Sign:
    """A white card with dark text. No item lies in its row, so the card may be wider than its cell."""

    text: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two items in reading order, of distinct shapes and colors, and perhaps a sign."""

    items: tuple[Item, ...]
    sign: Sign | None = None


def relation(a: Item, b: Item) -> str:
    """Where `a` lies seen from `b`: "above", "below", "to the left of" or "to the right of", the larger distance of
    the two axes. Raises UserError for a pair on an exact diagonal, where neither is larger."""
    down, right = a.row - b.row, a.column - b.column
    if abs(down) == abs(right):
        raise UserError(f"no single relation between {a} and {b}: move one of them off the other's diagonal")
    above, below, left, right_of = RELATIONS
    if abs(down) > abs(right):
        return below if down > 0 else above
    return right_of if right > 0 else left


def sample_scenes(count: int, seed: int, exclude: Collection[Scene] = frozenset()) -> list[Scene]:
    """`count` different scenes, none of them in `exclude`; the same arguments give the same list.

    A third of the draws have one item and a fifth a sign, but only 864 single items exist without a sign: long lists
    hold mostly pairs. Sample held-out scenes first and exclude them from the training scenes, so that both kinds are
    held out.
    """
    rng = random.Random(seed)
    seen = set(exclude)
    scenes = []
    while len(scenes) < count:
        scene = _sample_scene(rng)
        if scene not in seen:
            seen.add(scene)
            scenes.append(scene)
    return scenes


def _sample_scene(rng: random.Random) -> Scene:
    number = rng.choice((1, 2, 2))
    cells = [divmod(cell, GRID) for cell in rng.sample(range(GRID * GRID), number)]
    while number == 2 and abs(cells[0][0] - cells[1][0]) == abs(cells[0][1] - cells[1][1]):
        cells = [divmod(cell, GRID) for cell in rng.sample(range(GRID * GRID), number)]
    shapes, colors = rng.sample(SHAPES, number), rng.sample(COLORS, number)
    items = tuple(
        Item(shape, color, rng.choice(tuple(SIZES)), *cell)
        for shape, color, cell in zip(shapes, colors, sorted(cells), strict=True)
    )
    sign = None
    if rng.random() < 0.2:
        row = rng.choice([row for row in range(GRID) if row not in {item.row for item in items}])
        sign = Sign(rng.choice(rng.choice((SIGN_WORDS, SIGN_NUMBERS))), row, rng.randrange(GRID))
    return Scene(items, sign)


def render(scene: Scene, size: int = 224) -> Image.Image:
    """The RGB picture of a scene, `size` pixels wide and high. Position and shades vary a little, decided by the scene
    itself: the same scene always gives the same picture."""
    rng = random.Random(repr(scene))
    cell = size / GRID
    picture = Image.new("RGB", (size, size), (rng.randint(186, 206),) * 3)
    for item in scene.items:
        extent = round(SIZES[item.size] * cell)
        slack = (cell - extent) / 2
        left = round(item.column * cell + slack + rng.uniform(-0.8, 0.8) * slack)
        top = round(item.row * cell + slack + rng.uniform(-0.8, 0.8) * slack)
        shade = tuple(min(255, max(0, channel + rng.randint(-8, 8))) for channel in RGB[item.color])
        picture.paste(shade, (left, top), _mask(item.shape, extent))
    if scene.sign:
        _draw_sign(picture, scene.sign)
    return picture


@lru_cache(maxsize=64)
def _mask(shape: str, extent: int) -> Image.Image:
    """A shape in white on black, drawn four times as large and reduced, which smooths its edges."""
    large = Image.new("L", (4 * extent, 4 * extent))
    points = [((1 + x) * 2 * extent, (1 + y) * 2 * extent) for x, y in _outline(shape)]
    ImageDraw.Draw(large).polygon(points, fill=255)
    return large.reduce(4)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in the square from -1 to 1, y pointing down."""
    turns = [2 * math.pi * step / 72 for step in range(72)]
    if shape == "circle":
        return [(math.cos(turn), math.sin(turn)) for turn in turns]
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0, -0.92), (1, 0.86), (-1, 0.86)]
    if shape == "star":
        radii = (1.05, 0.45)
        corners = [(radii[corner % 2], math.pi * corner / 5) for corner in range(10)]
        return [(radius * math.sin(turn), 0.08 - radius * math.cos(turn)) for radius, turn in corners]
    if shape == "heart":
        return [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ]
    arm = 0.34  # a cross
    quarter = [(-arm, -1), (arm, -1), (arm, -arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def sign_box(sign: Sign, size: int = 224) -> tuple[int, int, int, int]:
    """The sign's card in a picture of `size` pixels: left, top, right, bottom."""
    cell = size / GRID
    width = round(_font(size).getlength(sign.text) + 0.3 * cell)
    left = round((sign.column + 0.5) * cell - width / 2)
    left = min(max(left, round(0.06 * cell)), size - width - round(0.06 * cell))  # keep a margin to the picture's edge
    return left, round((sign.row + 0.14) * cell), left + width, round((sign.row + 0.86) * cell)


def _draw_sign(picture: Image.Image, sign: Sign) -> None:
    box = sign_box(sign, picture.width)
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle(box, radius=0.05 * picture.width / GRID, fill="white", outline=(90, 90, 90))
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(middle, sign.text, fill=(20, 20, 20), font=_font(picture.width), anchor="mm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=round(0.42 * size / GRID))
