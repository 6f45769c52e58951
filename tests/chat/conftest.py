"""A small assistant and a run folder to talk to: the embedded models with an adapter that is random, not trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lav2.adapter import adapt, save_adapter
from lav2.demo.pretrain_llama import WEIGHTS
from lav2.inference import Assistant, load
from lav2.llama import load_llama
from lav2.vision import VisionEncoder

VISION = {"name": "lav2-tiny", "weights": str(WEIGHTS / "vision.safetensors")}


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run folder whose adapter makes the embedded LLaMA talk, at length, about whatever picture it is shown."""
    encoder = VisionEncoder(**VISION)
    torch.manual_seed(0)
    config = {"visual_layers": 3, "visual_length": 4, "prompt_layers": 3, "prompt_length": 4}
    config |= {"projector": {"width": 32, "blocks": 1}}
    model = adapt(load_llama(WEIGHTS / "llama"), config, feature_width=encoder.width)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("run")
    save_adapter(
        folder / "adapter",
        model,
        base_path=str(WEIGHTS / "llama"),
        tokenizer=str(WEIGHTS / "llama" / "tokenizer.model"),
        vision=VISION | {"tokens": "patches", "channel_order": "RGB"},
        vision_fingerprint=encoder.fingerprint,
        template="short",
        caption_prompts=["Describe the scene."],
    )
    return folder


@pytest.fixture(scope="session")
def assistant(run) -> Assistant:
    return load(run)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Two pictures of noise, as files."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / "first.png", folder / "second.png"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(path)
    return paths
