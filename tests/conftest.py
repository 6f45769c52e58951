"""What many tests share."""

import os
from pathlib import Path

import pytest
import torch

from lav2.adapter import AdaptedLlama, adapt
from lav2.llama import Llama, LlamaConfig

torch.set_num_threads(1)  # two threads on a busy machine can be 20 times slower


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that LAV2_TEST_DATA names; a test that needs it is skipped without."""
    folder = os.environ.get("LAV2_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: LAV2_TEST_DATA names no folder")
    return Path(folder)


@pytest.fixture
def llama() -> Llama:
    """A small random LLaMA of six layers with grouped-query attention; its logits are far from uniform."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=50, hidden_size=32, num_layers=6, num_heads=4, num_kv_heads=2, intermediate_size=48, max_length=64
    )
    return Llama(shape).reset_parameters(std=0.3).requires_grad_(False).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def features() -> torch.Tensor:
    """Features of three images: five tokens of width 16."""
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def adapted(llama: Llama) -> AdaptedLlama:
    """V2 on that LLaMA, K = 2 and L = 3, as if it had been trained: every parameter is away from its start."""
    model = adapt(llama, small_adapter(), feature_width=16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def small_adapter(**changes) -> dict:
    return {
        "visual_layers": 2,
        "visual_length": 4,
        "prompt_layers": 3,
        "prompt_length": 5,
        "projector": {"width": 24, "blocks": 1, "heads": 2},
        **changes,
    }


LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items) -> None:
    browser = [item for item in items if item.get_closest_marker("web")]
    if browser:
        browser[0].config.stash[LEFT_OUT] = len(browser)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say aloud what was not checked."""
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    count = sum("LAV2_TEST_DATA" in reason for reason in skipped)
    terminalreporter.write_line(f"{count} tests skipped for want of real data (LAV2_TEST_DATA)")
    if count := sum('".[web]"' in reason for reason in skipped):
        terminalreporter.write_line(f"{count} tests of the web page skipped for want of gradio (make test-web)")
    if count := terminalreporter.config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests of the web page in a real browser left out (make test-web)")
    for reason in {reason for reason in skipped if "Chromium" in reason}:
        terminalreporter.write_line(f"NOT CHECKED in a browser. {reason}")
