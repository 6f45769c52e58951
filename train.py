"""Train an adapter: ``python train.py experiment=… [group=choice] [key=value]``; ``-m`` sweeps over commas."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lav2.cli import run


def main(cfg: DictConfig) -> dict[str, float]:
    from lav2.training.run import train  # here, so that --help does not wait for torch

    return train(cfg, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    run(main, "train")
