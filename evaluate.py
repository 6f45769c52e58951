"""Score a trained run: ``python evaluate.py run=<folder> eval=coco_caption|instructions|… [key=value]``."""

from omegaconf import DictConfig

from lav2.cli import run
from lav2.run_folder import adapter_folder


def main(cfg: DictConfig) -> dict:
    adapter_folder(cfg.run)  # a wrong folder is told of before torch is imported
    from lav2.evaluation.run import evaluate  # here, so that --help does not wait for torch

    return evaluate(cfg)


if __name__ == "__main__":
    run(main, "evaluate")
