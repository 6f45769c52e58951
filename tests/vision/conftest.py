"""A small encoder whose features are known without it, and pictures for it."""

import numpy as np
import pytest
import torch
from PIL import Image


class Encoder(torch.nn.Module):
    """Two tokens of width 3: the mean colour of the upper and of the lower half; counts what it has seen."""

    num_tokens, width = 2, 3

    def __init__(self, fingerprint="mean colour", scale=1.0):
        super().__init__()
        self.fingerprint, self.seen = fingerprint, 0
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    def forward(self, images):
        self.seen += len(images)
        return images.unflatten(2, (2, 2)).mean((3, 4)).transpose(1, 2) * self.scale


@pytest.fixture
def paths(tmp_path):
    """Ten pictures, each of one colour: features are [[n, 2n, 3n], [n, 2n, 3n]]."""
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        Image.new("RGB", (6, 6), (number, 2 * number, 3 * number)).save(path)
    return paths


def no_fault(path, reason):
    raise AssertionError(f"{reason}: {path}")
