"""An image encoder and pictures for it, which LaVIN's adapters stand in."""

from pathlib import Path

import pytest
import torch

import lav2
from lav2.vision import VisionEncoder
from tests.adapter.methods import METHODS, Method


@pytest.fixture(scope="session")
def encoder() -> VisionEncoder:
    """The embedded world's, six blocks of width 96: class tokens of three of them."""
    weights = Path(lav2.__file__).parent / "demo" / "weights" / "vision.safetensors"
    return VisionEncoder("lav2-tiny", weights, tokens="class_tokens", layers=[2, 4, 6], projected=False)


@pytest.fixture
def pixels() -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 3, 72, 72, generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=METHODS)
def method(request, llama, tokens, features, encoder, pixels) -> Method:
    """Each method of the family in turn."""
    return Method(request.param, llama, tokens, features, encoder, pixels)
