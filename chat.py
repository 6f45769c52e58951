"""Talk to a trained run: ``python chat.py run=<folder> [image=…] [experts=[caption,ocr]] [ui=web] [key=value]``."""

from omegaconf import DictConfig

from lav2.cli import run


def main(cfg: DictConfig) -> None:
    from lav2.chat.run import chat  # here, so that --help does not wait for torch

    chat(cfg)


if __name__ == "__main__":
    run(main, "chat")
