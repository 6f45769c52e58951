"""OCR reads words and numbers that the tests draw, at sizes and in colors that a person reads, letter by letter."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lav2.errors import UserError
from lav2.experts.ocr import Ocr, RapidOcr, Tesseract, lines_of

# Size in pixels, text, color, and background of a line
LINES = [
    (14, "Grand Hotel, Room 407", "black", "white"),
    (18, "Total 12.50", (60, 60, 60), (225, 225, 225)),
    (24, "STOP AHEAD 25", "white", (200, 20, 30)),
    (32, "quiet please", (20, 60, 160), (250, 220, 60)),
    (48, "EXIT 7", "white", (25, 145, 60)),
]


def draw(lines, width=420) -> Image.Image:
    """Lines of text, each on a strip of its background."""
    picture = Image.new("RGB", (width, sum(3 * size for size, *_ in lines)), "white")
    pen, top = ImageDraw.Draw(picture), 0
    for size, text, color, background in lines:
        pen.rectangle((0, top, width, top + 3 * size), fill=background)
        pen.text((20, top + size), text, fill=color, font=ImageFont.load_default(size=size))
        top += 3 * size
    return picture


@pytest.fixture(scope="module")
def rapid_ocr() -> RapidOcr:
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package} (tests/requirements.txt)")
    return RapidOcr()


def test_rapidocr_reads_what_a_person_reads(rapid_ocr):
    assert rapid_ocr(draw(LINES)) == ", ".join(text for _, text, _, _ in LINES)


def test_rapidocr_says_nothing_of_a_picture_without_text(rapid_ocr, picture):
    assert rapid_ocr(picture) == ""


def test_rapidocr_sees_the_right_colors(rapid_ocr):
    """Red on blue of one brightness, as a picture with its channels swapped would show it too; and an alpha channel."""
    line = draw([(40, "RED 52", (214, 30, 40), (35, 75, 215))], width=260)
    line.putalpha(200)
    assert rapid_ocr(line) == "RED 52"


def test_boxes_side_by_side_are_one_line():
    def box(left, top, right, bottom):
        return [[left, top], [right, top], [right, bottom], [left, bottom]]

    boxes = np.array([box(0, 0, 50, 20), box(62, 2, 90, 21), box(200, 0, 250, 20), box(0, 30, 50, 50)], dtype=float)
    assert lines_of(list(zip(["RED", "52", "EXIT", "below"], boxes, strict=True))) == ["RED 52", "EXIT", "below"]


def test_a_line_without_letters_or_of_low_score_is_no_text():
    lines = [("EXIT", 0.9), ("★+", 0.99), ("Room 4", 0.4), ("十", 0.95)]
    assert [text for text, score in lines if Ocr().is_text(text, score)] == ["EXIT", "十"]
    latin = Ocr(min_score=0.3, characters="[A-Za-z0-9]")
    assert [text for text, score in lines if latin.is_text(text, score)] == ["EXIT", "Room 4"]
    with pytest.raises(UserError, match="no regular expression"):
        Ocr(characters="[")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[ocr\]"'):
        RapidOcr()


def test_tesseract_reads_lines():
    if shutil.which("tesseract") is None:
        pytest.skip("needs the program tesseract (apt install tesseract-ocr)")
    dark_on_light = [line for line in LINES if line[2] == "black" or line[0] == 32]
    assert Tesseract()(draw([(36, text, "black", "white") for _, text, *_ in dark_on_light], width=700)) == ", ".join(
        text for _, text, _, _ in dark_on_light
    )
    with pytest.raises(UserError, match="no language 'xyz'.*tesseract-ocr-xyz"):
        Tesseract("eng+xyz")


def test_a_missing_tesseract_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no program tesseract"):
        Tesseract()


TABLE = """level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext
1\t1\t0\t0\t0\t0\t0\t0\t300\t200\t-1\t
4\t1\t1\t1\t1\t0\t20\t20\t160\t30\t-1\t
5\t1\t1\t1\t1\t1\t20\t20\t80\t30\t96.5\tGrand
5\t1\t1\t1\t1\t2\t110\t20\t70\t30\t91.0\tHotel
5\t1\t1\t1\t2\t1\t20\t60\t70\t30\t93.0\t"25
5\t1\t2\t1\t1\t1\t20\t90\t70\t30\t21.0\tsmudge
"""


def test_words_become_lines(monkeypatch, tmp_path, picture):
    """A program in tesseract's place that answers as it does: with a table of words."""
    (tmp_path / "table").write_text(TABLE)
    program = tmp_path / "tesseract"
    program.write_text(
        "#!/bin/sh\ncase $1 in --list-langs) echo eng;; --version) echo tesseract 5;; "
        f"*) /bin/cat >{tmp_path}/read.png; /bin/cat {tmp_path}/table;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    expert = Tesseract()
    assert expert(picture) == 'Grand Hotel, "25'
    assert Image.open(tmp_path / "read.png").tobytes() == picture.tobytes()
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match="ended with 3: no memory"):
        expert(picture)
