"""Training that starts from the adapter of another run: phases one after another."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lav2.adapter.config import AdapterConfig
from lav2.adapter.folder import WEIGHTS, check_base, read_adapter_config, read_weights
from lav2.adapter.model import AdaptedLlama
from lav2.errors import UserError
from lav2.llama import LlamaConfig
from lav2.run_folder import adapter_folder

FREE = ("ownership", "overlap", "gate_init", "mixture.dropout")  # how parameters train, not what they mean


def start_problems(
    folder: str | Path, adapter: AdapterConfig, llama: LlamaConfig, vision: Mapping[str, Any] | None
) -> Iterator[str]:
    """Why the adapter in ``folder`` (a run's or an adapter's own) is no start for this config, by what its config says.

    Args:
        vision: the settings of the image encoder; ``None`` for a run that sees nothing.
    """
    try:
        config = read_adapter_config(adapter_folder(folder, "adapter_from"))
    except UserError as error:
        yield str(error)
        return
    here, there = (meaning(one, llama) for one in (adapter, AdapterConfig.from_dict(config["adapter"])))
    if vision and config.get("vision"):
        here |= {f"vision.{name}": value for name, value in vision.items() if name != "weights"}
        there |= {f"vision.{name}": value for name, value in config["vision"].items() if name != "weights"}
    differing = [name for name in here if name in there and here[name] != there[name]]
    if differing:
        values = ", ".join(f"{name} {there[name]!r} where this run has {here[name]!r}" for name in differing[:3])
        yield f"adapter_from={folder}: its parameters mean something else: it has {values}; give its settings"


def meaning(config: AdapterConfig, llama: LlamaConfig) -> dict[str, Any]:
    """The settings that change what an adapter's parameters mean, by their names on the command line."""
    values = config.to_dict() | {"prompt_layers": config.last_layers(llama)}
    if not config.lora.rank:
        values["lora"] = {"rank": 0}
    if not config.mixture.width:
        values["mixture"] = {"width": 0}
    flat = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {f"adapter.{name}": value for name, value in flat.items() if name not in FREE}


def start_from(folder: str | Path, model: AdaptedLlama, base: str, encoder: str | None) -> None:
    """Give ``model`` the values of the adapter in ``folder``.

    Args:
        base: the fingerprint of the base model's weights.
        encoder: that of the image encoder; ``None`` for a run that sees nothing.

    Raises:
        UserError: the adapter belongs to another base or another encoder, or its tensors do not fit.
    """
    folder = adapter_folder(folder, "adapter_from")
    config = read_adapter_config(folder)
    check_base(folder, config, model.llama.config, base)
    seen = config.get("vision_fingerprint")
    if None not in (encoder, seen) and encoder != seen:
        raise UserError(f"the adapter in {folder} was trained with another image encoder: give its weights")
    read_weights(model, folder / WEIGHTS)
