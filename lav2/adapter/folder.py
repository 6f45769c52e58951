"""The adapter folder, which people share: ``adapter_config.json`` and ``adapter_model.safetensors``, megabytes."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lav2.adapter.config import AdapterConfig
from lav2.adapter.model import AdaptedLlama
from lav2.disk import write_whole
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig
from lav2.llama.loading import check_tensors, fingerprint
from lav2.run_folder import ADAPTER_CONFIG as CONFIG
from lav2.run_folder import ADAPTER_WEIGHTS as WEIGHTS
from lav2.vision import VisionEncoder

FORMAT = 1


def save_adapter(folder: str | Path, model: AdaptedLlama, state: dict[str, Tensor] | None = None, **about: Any) -> None:
    """Write the adapter of ``model`` to ``folder``.

    Args:
        state: the adapter's tensors, where ``model`` does not hold them whole (a sharded run); default: the model's.
        about: plain values stored beside the adapter's own: what the base model, the encoder and the template were.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.adapter.state_dict() if state is None else state
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    write_whole(folder / WEIGHTS, weights)
    config = {
        "format": FORMAT,
        "adapter": model.config.to_dict(),
        "feature_width": model.feature_width,
        "base": {"shape": asdict(model.llama.config), "fingerprint": fingerprint(model.llama)},
        **about,
    }
    write_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """What :func:`save_adapter` wrote into the folder's ``adapter_config.json``."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"no adapter at {folder}: {CONFIG} is missing; a run folder keeps its adapter in adapter/")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if config.get("format") != FORMAT:
        raise UserError(f"{path} has format {config.get('format')!r}; this version of lav2 reads format {FORMAT}")
    return config


def load_adapter(folder: str | Path, llama: Llama, encoder: VisionEncoder | None = None) -> AdaptedLlama:
    """The adapter in ``folder`` on ``llama``, the base model it was trained on; ``encoder`` if it has parts in that.

    Raises:
        UserError: the base model is another one (says what differs), or a tensor is missing, unexpected or misshapen.
    """
    config, weights = read_adapter_config(folder), Path(folder) / WEIGHTS
    check_base(folder, config, llama.config, fingerprint(llama))
    model = AdaptedLlama(llama, AdapterConfig.from_dict(config["adapter"]), config["feature_width"], encoder)
    read_weights(model, weights)
    return model.eval()


def check_base(folder: str | Path, config: dict[str, Any], shape: LlamaConfig, found: str) -> None:
    """Refuse a base model of this ``shape`` and with this fingerprint that the adapter was not trained on.

    Args:
        folder: where the adapter is, for the message.
        config: what its config says.

    Raises:
        UserError: the base model is another one (says what differs).
    """
    trained_on = asdict(LlamaConfig(**config["base"]["shape"]))
    differences = [
        f"{name} {value} instead of {trained_on[name]}"
        for name, value in asdict(shape).items()
        if not alike(value, trained_on[name]) and name != "max_length"  # formats differ in what they call the longest
    ]
    if differences:
        raise UserError(
            f"the adapter in {folder} belongs to a base model of another shape; this one has {', '.join(differences)}"
        )
    if found != config["base"]["fingerprint"]:
        raise UserError(
            f"the adapter in {folder} was trained on other base weights of the same shape (fingerprint "
            f"{config['base']['fingerprint']}, this model has {found}): give the base it was trained on"
        )


def alike(one: Any, other: Any) -> bool:
    """Whether two settings are the same; GGUF files round theirs to float32."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def read_weights(model: AdaptedLlama, weights: str | Path) -> None:
    """Give ``model``'s adapter the values of an ``adapter_model.safetensors``.

    Raises:
        UserError: the file cannot be read, a tensor is missing, unexpected or misshapen, or a value is not finite.
    """
    if not Path(weights).is_file():
        raise UserError(f"no adapter weights at {weights}")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {weights}: {error}") from None
    check_tensors(state, {name: value.shape for name, value in model.adapter.state_dict().items()}, weights)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{weights} holds values that are not finite, in {name}")
    model.adapter.load_state_dict(state)
