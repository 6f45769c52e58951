"""The embedded world: scenes are varied, held-out scenes are new, pictures show what the scene says."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import ImageChops

from lav2.demo.world import (
    COLORS,
    GRID,
    RGB,
    SHAPES,
    SIGN_NUMBERS,
    SIGN_WORDS,
    SIZES,
    Item,
    Scene,
    Sign,
    relation,
    render,
    sample_scenes,
    sign_box,
)
from lav2.errors import UserError


def shape_at(row: int, column: int, shape: str = "circle", color: str = "red", size: str = "large") -> Item:
    return Item(shape, color, size, row, column)


def test_scenes_are_seeded_different_and_valid():
    scenes = sample_scenes(3000, seed=3)
    assert scenes == sample_scenes(3000, seed=3)
    assert scenes != sample_scenes(3000, seed=4)
    assert len(set(scenes)) == 3000
    for scene in scenes:
        assert len({item.shape for item in scene.items}) == len({item.color for item in scene.items})
        assert len({item.shape for item in scene.items}) == len(scene.items) in (1, 2)
        cells = [(item.row, item.column) for item in scene.items]
        assert cells == sorted(cells), "items stand in reading order, so that equal pictures are equal scenes"
        if scene.sign:
            assert scene.sign.row not in {item.row for item in scene.items}
    items = [item for scene in scenes for item in scene.items]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.color for item in items} == set(COLORS)
    assert {item.size for item in items} == set(SIZES)
    assert {(item.row, item.column) for item in items} == {(r, c) for r in range(GRID) for c in range(GRID)}
    assert 0.15 < sum(scene.sign is not None for scene in scenes) / 3000 < 0.3
    assert 0.1 < sum(len(scene.items) == 1 for scene in scenes) / 3000 < 0.4


def test_excluded_scenes_are_never_sampled():
    held_out = sample_scenes(500, seed=1)
    scenes = sample_scenes(5000, seed=0, exclude=set(held_out))
    assert set(scenes).isdisjoint(held_out)
    assert not set(sample_scenes(5000, seed=0)).isdisjoint(held_out), "without exclude some would come again"


def test_relation_names_the_larger_distance():
    assert relation(shape_at(0, 1), shape_at(2, 2)) == "above"
    assert relation(shape_at(2, 2), shape_at(0, 1)) == "below"
    assert relation(shape_at(1, 0), shape_at(1, 1)) == "to the left of"
    assert relation(shape_at(2, 2), shape_at(1, 0)) == "to the right of"
    with pytest.raises(UserError, match="diagonal"):
        relation(shape_at(0, 0), shape_at(1, 1))


def test_no_pair_lies_on_a_diagonal():
    pairs = [scene.items for scene in sample_scenes(3000, seed=5) if len(scene.items) == 2]
    assert pairs
    for a, b in pairs:
        assert abs(a.row - b.row) != abs(a.column - b.column)
        assert {relation(a, b), relation(b, a)} in ({"above", "below"}, {"to the left of", "to the right of"})


def test_a_scene_gives_the_same_picture_in_every_process():
    scene = sample_scenes(1, seed=8)[0]
    code = (
        "from lav2.demo.world import render, sample_scenes; import hashlib; "
        "print(hashlib.sha256(render(sample_scenes(1, seed=8)[0]).tobytes()).hexdigest())"
    )
    digests = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(digests) == 1
    assert ImageChops.difference(render(scene), render(scene)).getbbox() is None


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_own_cell_in_its_color(shape: str, size: int):
    for color in COLORS:
        for extent, share in SIZES.items():
            item = shape_at(2, 1, shape, color, extent)
            pixels = np.asarray(render(Scene((item,)), size)).astype(int)
            assert pixels.shape == (size, size, 3)
            rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).max(axis=2) > 12)
            cell = size / GRID
            assert rows.min() >= 2 * cell - 1 and rows.max() <= 3 * cell + 1
            assert columns.min() >= cell - 1 and columns.max() <= 2 * cell + 1
            assert (columns.max() - columns.min() + 1) / cell == pytest.approx(share, rel=0.2)
            middle = pixels[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
            distance = {name: np.abs(middle - rgb).sum() for name, rgb in RGB.items()}
            assert min(distance, key=distance.get) == color


def test_all_shapes_and_sizes_look_different():
    pictures = {
        (shape, size): np.asarray(render(Scene((shape_at(1, 1, shape, "black", size),)), 64)).astype(int)
        for shape in SHAPES
        for size in SIZES
    }
    keys = list(pictures)
    for index, a in enumerate(keys):
        for b in keys[:index]:
            assert np.abs(pictures[a] - pictures[b]).max() > 60, f"{a} looks like {b}"


def test_every_sign_fits_its_card_and_the_picture():
    for text in (*SIGN_WORDS, *SIGN_NUMBERS):
        for column in range(GRID):
            left, top, right, bottom = sign_box(Sign(text, 1, column))
            assert 0 < left < right < 224
            assert 224 / GRID <= top < bottom <= 2 * 224 / GRID
    for text in ("10", max(SIGN_WORDS, key=len)):
        sign = Sign(text, 1, 2)
        left, top, right, bottom = sign_box(sign)
        pixels = np.asarray(render(Scene((shape_at(0, 0),), sign)).convert("L"))
        card = pixels[top + 2 : bottom - 2, left + 2 : right - 2]
        dark = np.nonzero(card < 100)
        assert card.max() == 255 and len(dark[0]) > 100
        assert min(dark[0].min(), dark[1].min()) > 5, "the text keeps clear of the card's edge"
        assert dark[0].max() - dark[0].min() >= 18, "capitals stand high enough to be read"


def test_signs_do_not_touch_items():
    for scene in sample_scenes(300, seed=9):
        if scene.sign:
            left, top, right, bottom = sign_box(scene.sign)
            without = np.asarray(render(Scene(scene.items))).astype(int)
            rows, _ = np.nonzero(np.abs(without - without[top, left]).max(axis=2) > 20)
            assert not ((rows > top) & (rows < bottom)).any()
