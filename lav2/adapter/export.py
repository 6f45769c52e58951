"""An adapter without prompts, folded into its base: a plain LLaMA in Hugging Face's format."""

from pathlib import Path

import torch
from torch import nn

from lav2.adapter.config import AdapterConfig
from lav2.adapter.model import AdaptedLlama
from lav2.adapter.tuning import LinearTuning
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig, save_llama

ROOMS = {"attention": ("wq", "wk", "wv", "wo"), "feed_forward": ("w1", "w2", "w3")}


def export_llama(
    model: AdaptedLlama,
    tokenizer_path: str | Path,
    folder: str | Path,
    dtype: torch.dtype = torch.float16,
    text_only: bool = False,
) -> None:
    """Write ``model`` as a plain LLaMA to ``folder``, for transformers and whatever else reads its format.

    Biases stand there as ``attention_bias`` and ``mlp_bias``. The model is used up, see :func:`fold`.

    Raises:
        UserError: see :func:`check_foldable` and :func:`check_new`.
    """
    check_new(folder)
    save_llama(fold(model, text_only), tokenizer_path, folder, dtype)


def check_new(folder: str | Path) -> None:
    """Refuse to write over a model, which may be the base itself."""
    if (Path(folder) / "config.json").exists():
        raise UserError(f"{folder} holds a model already: name a new folder for the folded LLaMA")


def check_foldable(adapter: AdapterConfig, llama: LlamaConfig, text_only: bool = False) -> None:
    """Refuse an adapter that no plain LLaMA can stand for.

    Raises:
        UserError: it has prompts, or a visual path that is not to be left out.
    """
    if prompts := adapter.last_layers(llama):
        raise UserError(
            f"this adapter has prompts in its last {prompts} layers, and prompts cannot be folded into weights: only "
            "an adapter trained with adapter.prompt_layers=0 can be exported; share this one as it is"
        )
    if adapter.sees and not text_only:
        raise UserError(
            f"this adapter reads visual prompts in its first {adapter.visual_layers} layers, and prompts cannot be "
            "folded into weights: export it blind with text_only, or share it as it is"
        )


@torch.no_grad()
def fold(model: AdaptedLlama, text_only: bool = False) -> Llama:
    """Fold scales, biases, LoRA and norms into the base, in place, so that no model is held twice.

    Args:
        model: the adapted model; its base is what is returned, and the adapter must not be used on it again.
        text_only: leave the visual path of early fusion out: exact without an image, and blind.

    Raises:
        UserError: see :func:`check_foldable`.
    """
    check_foldable(model.config, model.llama.config, text_only)
    instruction = model.adapter["instruction"]
    for block, tuning in zip(model.llama.layers, instruction.layers, strict=True):
        for room, names in ROOMS.items():
            # transformers knows biases in all linears of a room or in none
            biased = model.config.bias and not set(names).isdisjoint(model.config.linears)
            for name in names:
                linear = getattr(getattr(block, room), name)
                own = tuning.linears[name] if name in tuning.linears else LinearTuning(linear, False, "none")
                folded = own.fold(linear)
                folded.bias = folded.bias if biased else None
                setattr(getattr(block, room), name, folded)
        for name, norm in tuning.norms.items():
            replace(getattr(block, name), norm.weight)
    if instruction.norm is not None:
        replace(model.llama.norm, instruction.norm.weight)
    return model.llama


def replace(norm: nn.Module, weight: torch.Tensor) -> None:
    """Give a frozen norm another weight, in its own dtype."""
    norm.weight = nn.Parameter(weight.to(norm.weight.dtype), requires_grad=False)
