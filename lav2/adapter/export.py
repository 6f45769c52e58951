"""What of an adapter folds into its base: all of it into a plain LLaMA for others, or all but the prompts for speed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lav2.adapter.config import AdapterConfig, LoraConfig
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
        UserError: see :func:`check_foldable`, :func:`check_new` and :func:`check_tokenizer`.
    """
    check_new(folder)
    check_tokenizer(tokenizer_path)
    save_llama(fold(model, text_only), tokenizer_path, folder, dtype)


def check_tokenizer(path: str | Path) -> None:
    """Refuse the tokenizer inside of a GGUF file, which is no file that could be copied."""
    if Path(path).suffix == ".gguf":
        raise UserError(
            f"the exported LLaMA needs a tokenizer in a file of its own, and {path} is a GGUF file: name the base's "
            "tokenizer.model or tokenizer.json as `tokenizer` in the adapter's adapter_config.json"
        )


def check_new(folder: str | Path) -> None:
    """Refuse to write over a model, which may be the base itself."""
    if (Path(folder) / "config.json").exists():
        raise UserError(f"{folder} holds a model already: name a new folder for the folded LLaMA")


def check_foldable(adapter: AdapterConfig, llama: LlamaConfig, text_only: bool = False) -> None:
    """Refuse an adapter that no plain LLaMA can stand for.

    Raises:
        UserError: it has prompts, image tokens or mixtures, or a visual path that is not to be left out.
    """
    if adapter.fusion == "tokens":
        raise UserError(
            "this adapter reads images as tokens (adapter.fusion=tokens, LaVIN), and neither its modality token nor "
            "its mixtures can be folded into weights: share it as it is"
        )
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


def fold(model: AdaptedLlama, text_only: bool = False) -> Llama:
    """Fold scales, biases, LoRA and norms into the base, in place, so that no model is held twice.

    Args:
        model: the adapted model; its base is what is returned, and the adapter must not be used on it again.
        text_only: leave the visual path of early fusion out: exact without an image, and blind.

    Raises:
        UserError: see :func:`check_foldable`.
    """
    check_foldable(model.config, model.llama.config, text_only)
    return absorb(model).llama


def fold_tuning(model: AdaptedLlama) -> AdaptedLlama:
    """Fold scales, biases, LoRA and norms into the base, in place, and leave the prompts: the same answers, sooner.

    For generation alone: what is left of the adapter belongs to the base as it is now, not to the one it was trained
    on. Exact up to rounding; a base in bf16 rounds a scale of 1.002 into every weight rather than applying it in fp32.

    Args:
        model: the adapted model, which is also what is returned.

    Raises:
        UserError: the base is quantized, or the prompts pass the frozen W_k and W_v, which folding would change.
    """
    config = model.config
    has_prompts = config.last_layers(model.llama.config) or config.visual_layers
    if has_prompts and config.prompt_projection == "frozen":
        raise UserError(
            "this adapter's prompts pass the frozen W_k and W_v (adapter.prompt_projection=frozen), which folding "
            "would change: use it as it is"
        )
    return absorb(model)


@torch.no_grad()
def absorb(model: AdaptedLlama) -> AdaptedLlama:
    """Move all that is not a prompt, a visual path or a mixture from the adapter of ``model`` into its base.

    Raises:
        UserError: the base is quantized.
    """
    if any(type(linear.weight) is not nn.Parameter for linear in linears(model.llama)):
        raise UserError("this base is quantized, and nothing can be folded into rounded weights: load it as it is")
    config, instruction = model.config, model.adapter["instruction"]
    for block, tuning in zip(model.llama.layers, instruction.layers, strict=True):
        for room, names in ROOMS.items():
            # transformers knows biases in all linears of a room or in none
            biased = config.bias and not set(names).isdisjoint(config.linears)
            biased = biased or any(getattr(getattr(block, room), name).bias is not None for name in names)
            for name in names:
                linear = getattr(getattr(block, room), name)
                own = tuning.linears[name] if name in tuning.linears else LinearTuning(linear, False, "none")
                folded = own.fold(linear)
                folded.bias = folded.bias if biased else None
                setattr(getattr(block, room), name, folded)
        for name, norm in tuning.norms.items():
            set_weight(getattr(block, name), norm.weight)
    if instruction.norm is not None:
        set_weight(model.llama.norm, instruction.norm.weight)
    for tuning in instruction.layers:
        tuning.linears, tuning.norms = nn.ModuleDict(), nn.ModuleDict()
    instruction.norm = None
    model.config = replace(config, bias=False, scale="none", norms="none", lora=LoraConfig())
    return model


def linears(llama: Llama) -> Iterator[nn.Linear]:
    """The linear layers of the blocks of ``llama``."""
    for block in llama.layers:
        for room, names in ROOMS.items():
            yield from (getattr(getattr(block, room), name) for name in names)


def set_weight(norm: nn.Module, weight: torch.Tensor) -> None:
    """Give a frozen norm another weight, in its own dtype."""
    norm.weight = nn.Parameter(weight.to(norm.weight.dtype), requires_grad=False)
