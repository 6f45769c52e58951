"""A small embedded world, and runs on it."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, register_resolvers
from lav2.demo.data import write_world
from lav2.training.run import train

ON_THE_WORLD = ("demo", "family/v1", "family/v2_lora", "family/lavin")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "world", 48, 12, 120, seed=5)


def few_steps(world: Path) -> list[str]:
    """Overrides that make ``experiment=demo`` train on the small world for a few steps."""
    return [
        f"data.folder={world}",
        "data.training=48",
        "data.held_out=12",
        "data.instruction_count=120",
        "data.world_seed=5",
        f"data.cache_dir={world.parent / 'features'}",
        "data.batch_size={caption: 8, instruction: 4}",
        "data.validation=0.1",
        "trainer.max_steps=6",
        "trainer.val_check_interval=4",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "callbacks.checkpoint_every=2",
    ]


@pytest.fixture(scope="session")
def config(world):
    """``config(*overrides)``: the demo's config on that world, for a few steps."""

    def make(*overrides: str, experiment: str = "demo"):
        register_resolvers()
        small = few_steps(world)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(
                "train", [f"experiment={experiment}", *(small if experiment in ON_THE_WORLD else []), *overrides]
            )

    return make


@pytest.fixture
def run(config, tmp_path):
    """``run(name, *overrides)``: train, and return the run folder."""

    def start(name: str, *overrides: str, experiment: str = "demo") -> Path:
        train(config(*overrides, experiment=experiment), tmp_path / name)
        return tmp_path / name

    return start
