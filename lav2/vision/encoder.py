"""The frozen image encoder: any vision transformer of open_clip (V2 paper, sec 4.3 and 5.1: CLIP ViT-L/14)."""

import hashlib
import logging
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn

from lav2.errors import UserError

# Models of our own, as open_clip configs
open_clip.add_model_config(Path(__file__).parents[1] / "demo" / "open_clip")

TOKENS = ("patches", "patches_and_class")


def feature_width(name: str) -> int:
    """F, the width of the features of the open_clip model ``name``, without building it.

    Raises:
        UserError: open_clip has no such model.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"vision.name: open_clip has no model {name!r}; see open_clip.list_models()")
    return config["embed_dim"]


class VisionEncoder(nn.Module):
    """Images → tokens of the last layer, normalised and projected as CLIP does with its class token.

    Args:
        name: an open_clip model with a vision transformer, such as ``ViT-L-14``.
        weights: a file of its weights: the whole CLIP model's or the visual tower's alone, safetensors or ``.pt``.
        tokens: ``patches``, or ``patches_and_class`` with the class token first (all 257 of ViT-L/14, V1's captioner).
        channel_order: ``RGB``, or ``BGR`` for the authors' released weights, which were run on swapped channels.

    Raises:
        UserError: the name, the weights or a choice does not fit.
    """

    def __init__(self, name: str, weights: str | Path, tokens: str = "patches", channel_order: str = "RGB"):
        super().__init__()
        if tokens not in TOKENS:
            raise UserError(f"vision.tokens is {tokens!r}; choose one of {', '.join(TOKENS)}")
        if channel_order not in ("RGB", "BGR"):
            raise UserError(f"vision.channel_order is {channel_order!r}; choose RGB or BGR")
        self.width = feature_width(name)
        self.tokens, self.channel_order = tokens, channel_order
        self.visual = load_visual(name, weights).requires_grad_(False).eval()
        self.num_tokens = self.visual.positional_embedding.shape[0] - (tokens == "patches")
        self.transform = image_transform_v2(PreprocessCfg(**self.visual.preprocess_cfg), is_train=False)
        # What the features depend on besides the images
        digest = hashlib.sha256(f"{name} {tokens} {channel_order} {self.visual.preprocess_cfg}".encode())
        for key, tensor in sorted(self.visual.state_dict().items()):
            digest.update(key.encode() + tensor.float().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture → what the encoder reads, (3, H, W)."""
        pixels = self.transform(image.convert("RGB"))
        return pixels.flip(0) if self.channel_order == "BGR" else pixels

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) → features (B, num_tokens, width)."""
        x = self.visual.transformer(self.visual._embeds(images))
        x = self.visual.ln_post(x) @ self.visual.proj
        return x[:, 1:] if self.tokens == "patches" else x


def load_visual(name: str, weights: str | Path) -> VisionTransformer:
    """The visual tower of the open_clip model ``name`` with ``weights``, strictly."""
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"no vision weights at {path}: vision.weights must name a file for open_clip's {name}")
    logging.disable(logging.WARNING)  # open_clip warns that the model is random; its weights come below
    visual = open_clip.create_model(name, load_weights=False).visual
    logging.disable(logging.NOTSET)
    if not isinstance(visual, VisionTransformer) or visual.proj is None:
        raise UserError(f"vision.name {name!r} has no CLIP vision transformer with a projection; ViT-L-14 is one")
    try:
        state = open_clip.factory.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise UserError(f"cannot read the vision weights {path}: {str(error).splitlines()[0]}") from None
    towers = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    try:
        visual.load_state_dict(towers or state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(
            f"the vision weights {path} do not fit open_clip's {name}: {' '.join(lines[1:2]).strip()[:200]}"
        ) from None
    return visual
