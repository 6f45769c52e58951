"""The authors' released adapters → adapter folders of ours; nothing may be missing, left over or of another shape."""

from pathlib import Path

import torch
from torch import Tensor

from lav2.adapter.config import AdapterConfig
from lav2.adapter.folder import save_adapter
from lav2.adapter.model import AdaptedLlama, adapt
from lav2.adapter.releases import Release, ReleasedFile, describe
from lav2.errors import UserError
from lav2.llama import load_llama
from lav2.llama.loading import check_tensors
from lav2.llama.tokenizer import tokenizer_file
from lav2.vision import VisionEncoder, feature_width

VISION = "ViT-L-14-quickgelu"  # OpenAI's CLIP ViT-L/14


def convert(
    file: str | Path,
    folder: str | Path,
    base: str | Path,
    vision_weights: str | Path | None = None,
    prompt_length: int = 10,
    gate_activation: str | None = None,
) -> AdapterConfig:
    """Write the released adapter in ``file`` as an adapter folder, which :func:`lav2.load` reads.

    Without an image our model leaves the visual path out; the authors' code sends an image of zeros through it.

    Args:
        file: as released, such as ``llama_adapter_len10_layer30_release.pth`` or ``…_BIAS-7B.pth``.
        folder: the adapter folder to write.
        base: the LLaMA it was trained on.
        vision_weights: OpenAI's CLIP ViT-L/14, for an adapter that sees; may be given to :func:`lav2.load` instead.
        prompt_length: K of a language adapter, whose file holds L · K prompts in one; the others say it themselves.
        gate_activation: ``tanh`` or ``none``; default: ``none`` for scalar gates (V1's first release), ``tanh`` for
            gates per head, as trained. (The authors' V1 inference leaves tanh out of those, too.)

    Raises:
        UserError: the file is none of the released ones, a tensor is missing, unexpected, misshapen or not finite
            (named in the file's words), or the base has another shape.
    """
    stored = ReleasedFile.read(file)
    release = describe(stored, prompt_length, gate_activation)
    check_declared(stored, release.config)
    vision = None
    if release.channel_order:
        if release.feature_width != feature_width(VISION):
            raise UserError(
                f"clip_proj.weight in {file} reads features of width {release.feature_width}; those of {VISION}, which "
                f"the released adapters see through, are {feature_width(VISION)}"
            )
        vision = {
            "name": VISION,
            "weights": vision_weights and str(Path(vision_weights).resolve()),
            "tokens": "patches_and_class",
            "channel_order": release.channel_order,
        }
    encoder = VisionEncoder(**vision) if vision_weights and vision else None
    llama = load_llama(base, torch.bfloat16)
    try:
        model = adapt(llama, release.config, release.feature_width)
    except UserError as error:
        raise UserError(f"{file} does not fit the base model {base}: {error}") from None
    state = translate(stored, model, release)
    for name, tensor in stored.tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file} holds values that are not finite, in {name}")
    base = Path(base).resolve()
    save_adapter(
        folder,
        model,
        state,
        converted_from=Path(file).name,
        base_path=str(base),
        tokenizer=str(tokenizer_file(base)),
        vision=vision,
        vision_fingerprint=encoder and encoder.fingerprint,
        template=release.template,
        caption_prompts=list(release.caption_prompts),
    )
    return release.config


def check_declared(file: ReleasedFile, config: AdapterConfig) -> None:
    """Refuse a file that declares other tuning than it holds tensors for."""
    for key, held in (("w_bias", config.bias), ("w_lora", config.lora.rank > 0)):
        if bool(file.declared.get(key, held)) != held:
            raise UserError(
                f"{file.path} declares {key}={file.declared[key]} but holds {'such' if held else 'no such'} tensors"
            )


def translate(file: ReleasedFile, model: AdaptedLlama, release: Release) -> dict[str, Tensor]:
    """The released tensors by our names, in our shapes and in fp32: the state of ``model``'s adapter.

    The files hold a gate for every layer; those of layers without prompts were never used and are left out.
    """
    ours = {name: tensor.shape for name, tensor in model.adapter.state_dict().items()}
    prompts = [name for name in ours if name.endswith(".prompts.prompt")]  # layer by layer
    theirs = {name: release.their_name(name) for name in ours if name not in prompts}
    expected = {theirs[name]: their_shape(name, ours[name], release.config) for name in theirs}
    if prompts:
        length, hidden_size = ours[prompts[0]]
        expected[release.query] = torch.Size((len(prompts) * length, hidden_size))
    unused = {
        release.their_name(f"instruction.layers.{layer}.prompts.gate.{kind}")
        for layer in range(model.llama.config.num_layers - len(prompts))
        for kind in ("weight", "new_gate")
    }
    check_tensors({name: t for name, t in file.tensors.items() if name not in unused}, expected, file.path)
    state = {name: file.tensors[theirs[name]].float().reshape(ours[name]) for name in theirs}
    if prompts:
        by_layer = file.tensors[release.query].float().chunk(len(prompts))
        state |= {name: prompt.clone() for name, prompt in zip(prompts, by_layer, strict=True)}
    return state


def their_shape(name: str, shape: torch.Size, config: AdapterConfig) -> torch.Size:
    """The shape in the file of our parameter ``name`` of ``shape``: gates per head and new gates are (1, …, 1, 1)."""
    if name.endswith(".new_gate") or name.endswith(".gate.weight") and config.gate == "per_head":
        return torch.Size((1, *shape, 1, 1))
    return shape
