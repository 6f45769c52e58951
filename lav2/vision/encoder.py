"""The frozen image encoder: any vision transformer of open_clip (V2 paper, sec 4.3 and 5.1: CLIP ViT-L/14)."""

import hashlib
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from lav2.errors import UserError
from lav2.vision.efficientnet import STEM, timm_state
from lav2.vision.towers import (
    bare_tower,
    blocks,
    feature_map,
    has_class_token,
    has_projection,
    model_config,
    token_shape,
)

# of the colours, from 0 to 1: mean and deviation
NORMALIZATIONS = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}

CHOICES = {
    "tokens": ("patches", "patches_and_class", "class_tokens"),
    "channel_order": ("RGB", "BGR"),
    "resize": ("crop", "squash"),
    "normalization": ("model", *NORMALIZATIONS),
}


def feature_width(name: str, projected: bool = True) -> int:
    """F, the width of the features of the open_clip model ``name``, without its weights.

    Raises:
        UserError: open_clip has no such model, or cannot build it.
    """
    return model_config(name)["embed_dim"] if projected else token_shape(name)[1]


def token_count(name: str, tokens: str = "patches", layers: Sequence[int] | None = None) -> int:
    """How many tokens the open_clip model ``name`` gives of an image, without its weights; see :class:`VisionEncoder`.

    Raises:
        UserError: as :func:`feature_width`.
    """
    if tokens == "class_tokens":
        return len(layers or ())
    found = token_shape(name)[0]
    return found if tokens == "patches_and_class" else found - has_class_token(bare_tower(name))


class VisionEncoder(nn.Module):
    """Images → tokens, normalised and projected as CLIP does with its class token.

    CLIP's vision transformers give all that is described here. Other towers of open_clip (timm's transformers and
    convolutional networks, CLIP's ResNets, CoCa) give their last feature map, ``patches`` without projection.

    Args:
        name: an open_clip model, such as ``ViT-L-14``.
        weights: a file of its weights: the whole CLIP model's or the visual tower's alone, safetensors or ``.pt``.
        tokens: ``patches`` of the last layer; ``patches_and_class`` with the class token first (all 257 of ViT-L/14,
            V1's captioner); ``class_tokens`` of several ``layers`` (V1's ScienceQA model, LaVIN).
        layers: the blocks, counted from 1, whose class tokens are taken.
        projected: through CLIP's final norm and projection; without, tokens as the blocks leave them (LaVIN).
        channel_order: ``RGB``, or ``BGR`` for the authors' released weights, which were run on swapped channels under
            RGB's normalization.
        resize: ``crop`` the middle of the picture, or ``squash`` all of it into the square (LaVIN).
        normalization: the colours' mean and deviation are the ``model``'s, those of ``imagenet`` (LaVIN), or ``half``:
            0.5 both, as for networks that came from TensorFlow.

    Raises:
        UserError: the name, the weights or a choice does not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path,
        tokens: str = "patches",
        layers: Sequence[int] | None = None,
        projected: bool = True,
        channel_order: str = "RGB",
        resize: str = "crop",
        normalization: str = "model",
    ):
        super().__init__()
        settings = {
            "name": name,
            "tokens": tokens,
            "layers": layers and list(layers),
            "projected": projected,
            "channel_order": channel_order,
            "resize": resize,
            "normalization": normalization,
        }
        if found := vision_problems(settings):
            raise UserError("; ".join(found))
        self.width = feature_width(name, projected)
        self.tokens, self.layers, self.projected, self.channel_order = tokens, layers, projected, channel_order
        self.visual = load_visual(name, weights).requires_grad_(False).eval()
        self.num_tokens = token_count(name, tokens, layers)
        preprocess = dict(self.visual.preprocess_cfg)
        if resize == "squash":
            preprocess["resize_mode"] = "squash"
        preprocess |= NORMALIZATIONS.get(normalization, {})
        self.transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
        # What the features depend on besides the images
        chosen = "" if tokens != "class_tokens" else f" {list(layers)}"
        chosen += "" if projected else " unprojected"
        chosen += " normalized as RGB" if channel_order == "BGR" else ""  # as stored features once were not
        digest = hashlib.sha256(f"{name} {tokens} {channel_order} {preprocess}{chosen}".encode())
        for key, tensor in sorted(self.visual.state_dict().items()):
            digest.update(key.encode() + tensor.float().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture → what the encoder reads, (3, H, W)."""
        image = image.convert("RGB")
        if self.channel_order == "BGR":  # in front of the normalization, which stays RGB's
            image = Image.merge("RGB", image.split()[::-1])
        return self.transform(image)

    def forward(self, images: Tensor, adapters: Sequence[Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Preprocessed images (B, 3, H, W) → features (B, num_tokens, width).

        ``adapters`` change the normalised states (B, S, width of the blocks) in front of each block's attention; with
        them gradients flow through the encoder, which itself stays frozen.
        """
        with torch.set_grad_enabled(adapters is not None and torch.is_grad_enabled()):
            return self.features(images, adapters)

    def features(self, images: Tensor, adapters: Sequence[Callable[[Tensor], Tensor]] | None) -> Tensor:
        if not isinstance(self.visual, VisionTransformer):
            x = feature_map(self.visual, images)
            return x[:, has_class_token(self.visual) :] if self.tokens == "patches" else x
        x = self.visual._embeds(images)
        class_tokens = []
        for number, block in enumerate(self.visual.transformer.resblocks, start=1):
            x = block(x) if adapters is None else adapted_block(block, x, adapters[number - 1])
            if self.tokens == "class_tokens" and number in self.layers:
                class_tokens.append(x[:, 0])
        if class_tokens:
            x = torch.stack(class_tokens, dim=1)
        elif self.tokens == "patches":
            x = x[:, 1:]
        return self.visual.ln_post(x) @ self.visual.proj if self.projected else x


def adapted_block(block: ResidualAttentionBlock, x: Tensor, adapter: Callable[[Tensor], Tensor]) -> Tensor:
    """``block`` on ``x`` (B, S, width) with ``adapter`` between its first norm and its attention."""
    x = x + block.ls_1(block.attention(adapter(block.ln_1(x))))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def vision_problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with an encoder's settings, besides its weights, one line each."""
    found = [
        f"vision.{key} is {settings[key]!r}; choose one of {', '.join(known)}"
        for key, known in CHOICES.items()
        if settings[key] not in known
    ]
    if not isinstance(settings["projected"], bool):
        found.append(f"vision.projected is {settings['projected']!r}; it must be true or false")
    try:
        visual = bare_tower(settings["name"])
    except UserError as error:
        return [*found, str(error)]
    if settings["projected"] is True and not has_projection(visual):
        found.append(f"vision.projected is true, but {settings['name']} projects no single tokens: set it to false")
    layers, depth, tokens = settings["layers"], len(blocks(visual)), settings["tokens"]
    if (tokens != "patches" and not has_class_token(visual)) or (tokens == "class_tokens" and not depth):
        found.append(f"vision.tokens is {tokens}, which {settings['name']} does not give: choose patches")
    elif tokens == "class_tokens":
        if not layers or any(type(layer) is not int or not 1 <= layer <= depth for layer in layers):
            found.append(
                f"vision.layers is {layers!r}; vision.tokens=class_tokens takes a list of blocks, 1 to {depth}"
            )
    elif layers:
        found.append(f"vision.layers is {layers!r}; only vision.tokens=class_tokens chooses layers: leave it null")
    return found


def load_visual(name: str, weights: str | Path) -> nn.Module:
    """The visual tower of the open_clip model ``name`` with ``weights``, strictly."""
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"no vision weights at {path}: vision.weights must name a file for open_clip's {name}")
    if zipfile.is_zipfile(path) and any("/code/" in entry for entry in zipfile.ZipFile(path).namelist()):
        raise UserError(
            f"{path} is a TorchScript archive, as OpenAI publishes CLIP: it holds code, which is not run here; save "
            "its tensors once with torch.save(torch.jit.load(path).state_dict(), new_path) and name that file"
        )
    warn_of_activation(name, path)
    logging.disable(logging.WARNING)  # open_clip warns that the model is random; its weights come below
    visual = open_clip.create_model(name, load_weights=False).visual
    logging.disable(logging.NOTSET)
    try:
        state = open_clip.factory.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise UserError(f"cannot read the vision weights {path}: {str(error).splitlines()[0]}") from None
    if "input_resolution" in state:  # which OpenAI's files alone carry
        warn_of_activation(name, path, openai=True)
    towers = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    if STEM in state and isinstance(visual, TimmModel):
        towers = timm_state(state, visual.trunk)
    try:
        visual.load_state_dict(towers or state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(
            f"the vision weights {path} do not fit open_clip's {name}: {' '.join(lines[1:2]).strip()[:200]}"
        ) from None
    return visual


def warn_of_activation(name: str, path: Path, openai: bool = False) -> None:
    """Say when the weights are OpenAI's, which were trained with QuickGELU, and the model is built with GELU."""
    openai = openai or "openai" in str(path).lower()
    if openai and not model_config(name).get("quick_gelu"):
        warnings.warn(
            f"{path} looks like OpenAI's CLIP, which needs QuickGELU, and open_clip's {name} has GELU: set "
            f"vision.name={name}-quickgelu",
            stacklevel=2,
        )
