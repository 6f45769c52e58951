"""A small embedded world, and runs on it."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, register_resolvers
from lav2.training.run import train
from tests.training.small import draw, settings

ON_THE_WORLD = ("demo", "family/v1", "family/v2_lora", "family/lavin")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def config(world):
    """``config(*overrides)``: the demo's config on that world, for a few steps."""

    def make(*overrides: str, experiment: str = "demo"):
        register_resolvers()
        small = settings(world) if experiment in ON_THE_WORLD else []
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [f"experiment={experiment}", *small, *overrides])

    return make


@pytest.fixture
def run(config, tmp_path):
    """``run(name, *overrides)``: train, and return the run folder."""

    def start(name: str, *overrides: str, experiment: str = "demo") -> Path:
        train(config(*overrides, experiment=experiment), tmp_path / name)
        return tmp_path / name

    return start
