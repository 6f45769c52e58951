"""Assistants on the embedded LLaMA, and experts that say what a test tells them to."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from lav2 import load
from lav2.adapter import adapt, save_adapter
from lav2.inference import Assistant
from lav2.llama import load_llama
from lav2.vision import VisionEncoder

WEIGHTS = Path(__file__).parents[2] / "lav2" / "demo" / "weights"
VISION = {"name": "lav2-tiny", "weights": str(WEIGHTS / "vision.safetensors"), "tokens": "patches"}
SHAPE = {"visual_layers": 2, "visual_length": 4, "prompt_layers": 2, "prompt_length": 3}
PROJECTOR = {"width": 24, "blocks": 1, "heads": 2}


def write_adapter(folder: Path, seed: int, sees: bool = True, **config) -> Path:
    """An adapter folder as training leaves it, with every parameter away from its start."""
    encoder = VisionEncoder(**VISION) if sees else None
    blind = {} if sees else {"visual_layers": 0}
    model = adapt(load_llama(WEIGHTS / "llama"), SHAPE | {"projector": PROJECTOR} | blind | config, feature_width=96)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_adapter(
        folder,
        model,
        base_path=str(WEIGHTS / "llama"),
        tokenizer=str(WEIGHTS / "llama" / "tokenizer.model"),
        vision=VISION if sees else None,
        vision_fingerprint=encoder and encoder.fingerprint,
        template="short",
        caption_prompts=["Describe the scene."] if sees else [],
    )
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), seed=0)


@pytest.fixture(scope="session")
def assistant(adapter_folder) -> Assistant:
    return load(adapter_folder, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill="red")
    return image


@dataclass
class Says:
    """An expert with one answer to everything; counts how often it is asked."""

    text: str
    name: str = "caption"
    asked: list = field(default_factory=list)

    def __call__(self, image):
        self.asked.append(image.size)
        return self.text
