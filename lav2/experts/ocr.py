"""The words and numbers in a picture, read by rapidocr or by tesseract (V2 paper, sec 4.4)."""

import csv
import importlib.util
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

from lav2.errors import UserError

NAME = "text in the image"


class Ocr:
    """What readers of text share.

    Args:
        min_score: lines that it is less sure of, from 0 to 1, are left out.
        characters: a regular expression; what has no match of it is no text. Shapes may be read as ``★`` or ``+``.
        name: as the prompt shows it.
    """

    def __init__(self, min_score: float = 0.5, characters: str = r"\w", name: str = NAME):
        try:
            re.compile(characters)
        except (re.error, TypeError) as error:
            raise UserError(f"characters is {characters!r}, which is no regular expression: {error}") from None
        self.min_score, self.characters, self.name = min_score, characters, name

    def is_text(self, text: str, score: float) -> bool:
        return score >= self.min_score and re.search(self.characters, text) is not None


class RapidOcr(Ocr):
    """OCR by rapidocr, whose models for Latin and Chinese come inside of its package.

    Args:
        min_score, characters, name: see :class:`Ocr`.

    Raises:
        UserError: rapidocr or onnxruntime is missing.
    """

    def __init__(self, min_score: float = 0.5, characters: str = r"\w", name: str = NAME):
        super().__init__(min_score, characters, name)
        if any(importlib.util.find_spec(package) is None for package in ("rapidocr", "onnxruntime")):
            raise UserError('this OCR needs rapidocr and onnxruntime: pip install -e ".[ocr]"')
        from rapidocr import RapidOCR

        threads = {  # as torch; by itself it takes all cores, and is many times slower on a busy machine
            f"EngineConfig.onnxruntime.{kind}_op_num_threads": torch.get_num_threads() for kind in ("intra", "inter")
        }
        self.engine = RapidOCR(params={"Global.text_score": self.min_score, "Global.log_level": "critical"} | threads)
        self.fingerprint = f"rapidocr {version('rapidocr')} {self.min_score} {self.characters}"

    def __call__(self, image: Image.Image) -> str:
        found = self.engine(np.asarray(image.convert("RGB"))[:, :, ::-1])  # it expects BGR
        if found.txts is None:
            return ""
        read = zip(found.txts, found.scores, found.boxes, strict=True)
        return ", ".join(lines_of([(text, box) for text, score, box in read if self.is_text(text, score)]))


class Tesseract(Ocr):
    """OCR by the program ``tesseract``, which knows many scripts; it is at home on pages, not in scenes.

    Args:
        language: of its trained data, such as ``eng`` or ``eng+deu``.
        page_mode: its ``--psm``; 11 looks for sparse text anywhere, 3 reads a page.
        min_score, characters, name: see :class:`Ocr`.

    Raises:
        UserError: the program or a language is missing.
    """

    def __init__(
        self,
        language: str = "eng",
        page_mode: int = 11,
        min_score: float = 0.5,
        characters: str = r"\w",
        name: str = NAME,
    ):
        super().__init__(min_score, characters, name)
        if shutil.which("tesseract") is None:
            raise UserError("no program tesseract on PATH: install it (Debian: apt install tesseract-ocr), or use ocr")
        known = run_tesseract("--list-langs").split()
        if missing := [one for one in language.split("+") if one not in known]:
            raise UserError(
                f"tesseract has no language {missing[0]!r} (Debian: apt install tesseract-ocr-{missing[0]})"
            )
        self.arguments = ["-l", language, "--psm", str(page_mode)]
        program = run_tesseract("--version").splitlines()[0]
        self.fingerprint = f"{program} {self.arguments} {self.min_score} {self.characters}"

    def __call__(self, image: Image.Image) -> str:
        picture = io.BytesIO()
        image.convert("RGB").save(picture, "PNG")
        table = run_tesseract("stdin", "stdout", *self.arguments, "tsv", picture=picture.getvalue())
        lines: dict[tuple, list[tuple[str, float]]] = {}
        for word in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
            if float(word["conf"]) >= 0 and word["text"].strip():  # -1: a block or line, not a word
                place = word["block_num"], word["par_num"], word["line_num"]
                lines.setdefault(place, []).append((word["text"], float(word["conf"]) / 100))
        read = ((" ".join(text for text, _ in words), min(score for _, score in words)) for words in lines.values())
        return ", ".join(text for text, score in read if self.is_text(text, score))


def lines_of(boxes: Sequence[tuple[str, np.ndarray]]) -> list[str]:
    """Lines of texts with boxes (corners, x and y): a detector of text tears a line apart at a wide space.

    What follows on the right, at the height of the last box and no further from it than its own height, is of one line.
    """
    lines: list[str] = []
    last = np.full((4, 2), np.inf)
    for text, box in boxes:
        height = np.ptp(box[:, 1])
        shared = min(box[:, 1].max(), last[:, 1].max()) - max(box[:, 1].min(), last[:, 1].min())
        if shared >= height / 2 and abs(box[:, 0].min() - last[:, 0].max()) <= height:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
        last = box
    return lines


def run_tesseract(*arguments: str, picture: bytes = b"") -> str:
    done = subprocess.run(["tesseract", *arguments], input=picture, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tesseract ended with {done.returncode}: {done.stderr.decode(errors='replace')[-200:]}")
    return done.stdout.decode(errors="replace")
