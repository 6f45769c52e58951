"""From a config to a conversation."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lav2.adapter import read_adapter_config
from lav2.chat.conversation import Conversation
from lav2.chat.terminal import Terminal
from lav2.config import DTYPES, construct
from lav2.data.pictures import read_picture
from lav2.errors import UserError
from lav2.experts import Experts
from lav2.inference import Assistant, find_quantization, load
from lav2.llama.settings import GenerationSettings
from lav2.run_folder import adapter_folder

INTERFACES = ("terminal", "web")


def chat(cfg: DictConfig) -> None:
    """Talk to the run ``cfg.run``, in the terminal or on a web page.

    Raises:
        UserError: the run or its base is missing, or a setting is wrong; found before any weight is read.
    """
    folder = adapter_folder(cfg.run)
    if cfg.dtype not in DTYPES:
        raise UserError(f"dtype is {cfg.dtype!r}; choose one of {', '.join(DTYPES)}")
    config = read_adapter_config(folder)
    settings = generation_settings(cfg, config["base"]["shape"]["max_length"])
    if cfg.ui not in INTERFACES:
        raise UserError(f"ui is {cfg.ui!r}; choose one of {', '.join(INTERFACES)}")
    if cfg.turns is not None and (type(cfg.turns) is not int or cfg.turns < 0):
        raise UserError(f"turns is {cfg.turns!r}; it must be a whole number, 0 or more, or null for all that fit")
    if cfg.image is not None:
        read_picture(cfg.image)
    quantize = find_quantization(config, cfg.quantize)
    if type(cfg.fold) is not bool:
        raise UserError(f"fold is {cfg.fold!r}; it must be true or false")
    if cfg.fold and quantize is not None:
        raise UserError(f"fold=true: nothing can be folded into a base rounded to {quantize}; leave fold out")
    experts: Experts = construct("experts", cfg.context)
    if cfg.ui == "web":
        from lav2.chat.web import serve  # here, since gradio is an extra

        serve(load_assistant(cfg, folder), experts, settings, cfg)
        return
    conversation = Conversation(load_assistant(cfg, folder), experts, cfg.turns)
    if cfg.image is not None:
        conversation.show(cfg.image)
    Terminal(conversation, settings).run()


def load_assistant(cfg: DictConfig, folder: Path) -> Assistant:
    with Console(stderr=True).status("reading the model"):
        dtype = DTYPES[cfg.dtype]
        return load(folder, cfg.base, cfg.vision_weights, dtype, quantize=cfg.quantize, fold=cfg.fold)


def generation_settings(cfg: DictConfig, max_length: int) -> dict[str, Any]:
    """The settings of ``cfg.generation`` for a model that reads ``max_length`` tokens.

    Raises:
        UserError: they are wrong, or leave no room for a question.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.generation, resolve=True)
    if settings.get("max_new_tokens") is None:
        settings["max_new_tokens"] = min(max_length // 4, 512)
    chosen = GenerationSettings.checked(settings)
    if chosen.num_beams > 1:
        raise UserError(f"num_beams is {chosen.num_beams}, but beam search cannot be streamed: set it to 1")
    if chosen.max_new_tokens >= max_length:
        raise UserError(
            f"max_new_tokens is {chosen.max_new_tokens}, but this model reads {max_length} tokens, the question among "
            "them: choose fewer"
        )
    return settings
