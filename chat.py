"""Talk to a trained run: ``python chat.py run=<folder> [image=…] [experts=[caption,ocr]] [ui=web] [key=value]``."""

from omegaconf import DictConfig

from lav2.cli import run
from lav2.run_folder import adapter_folder


def main(cfg: DictConfig) -> None:
    adapter_folder(cfg.run)  # a wrong folder is told of before torch is imported
    from lav2.chat.run import chat  # here, so that --help does not wait for torch

    chat(cfg)


if __name__ == "__main__":
    run(main, "chat")
