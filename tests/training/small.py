"""A small embedded world, drawn in a second, and the settings of short runs on it."""

from pathlib import Path

from lav2.demo.data import write_world


def draw(folder: Path) -> Path:
    return write_world(folder / "world", 48, 12, 120, seed=5)


def settings(world: Path) -> list[str]:
    """The demo's data as :func:`draw` drew them, a few steps, all of them logged."""
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
