"""A small real tokenizer, and small data sets on disk."""

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from PIL import Image

from lav2.llama.tokenizer import Tokenizer

WORDS = ["a", "red", "blue", "circle", "star", "is", "above", "below", "the", "small", "large", "there", "are", "two"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 12))).capitalize() + "."


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """SentencePiece as LLaMA uses it: BPE with byte fallback, trained on a few sentences."""
    rng = random.Random(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence(rng) for _ in range(500)),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        pad_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


@pytest.fixture
def world(tmp_path) -> dict:
    """20 small images with three captions each, and 41 instructions; the arguments of JointData for them."""
    rng = random.Random(1)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(20):
        name = f"{number:02}.png"
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(tmp_path / "images" / name)
        images.append({"id": number, "file_name": name})
        for _ in range(3):
            annotations.append({"id": len(annotations), "image_id": number, "caption": sentence(rng)})
    write(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    instructions = [
        {"instruction": sentence(rng), "input": "" if number % 3 else sentence(rng), "output": sentence(rng)}
        for number in range(41)
    ]
    write(tmp_path / "instructions.json", instructions)
    return {
        "captions": [{"annotations": str(tmp_path / "captions.json"), "images": str(tmp_path / "images")}],
        "instructions": [str(tmp_path / "instructions.json")],
        "template": "short",
        "batch_size": {"caption": 4, "instruction": 4},
        "max_length": {"caption": 128, "instruction": 256},
        "cache_dir": str(tmp_path / "cache"),
    }


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))
