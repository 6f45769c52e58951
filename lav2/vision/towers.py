"""The visual towers that open_clip knows: CLIP's vision transformers and ResNets, CoCa's, and all of timm's."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from lav2.errors import UserError

# Models of our own, as open_clip configs
open_clip.add_model_config(Path(__file__).parents[1] / "demo" / "open_clip")
open_clip.add_model_config(Path(__file__).parent / "open_clip")


def model_config(name: str) -> dict[str, Any]:
    """open_clip's config of the model ``name``.

    Raises:
        UserError: there is none.
    """
    # the list alone is asked: names such as hf-hub:… would be looked up on the network
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise UserError(f"vision.name: open_clip has no model {name!r}; see open_clip.list_models()")
    return config


@lru_cache
def bare_tower(name: str) -> nn.Module:
    """The visual tower of the open_clip model ``name`` on the meta device: its shapes without weights.

    Raises:
        UserError: open_clip has no such model or cannot build it, or its tower is of a kind that is not read here.
    """
    model_config(name)
    logging.disable(logging.WARNING)  # open_clip warns that the model is random
    try:
        with torch.device("meta"):
            visual = open_clip.create_model(name, load_weights=False, device="meta").visual
    except Exception as error:  # whatever its text tower or timm asks for and this machine has not
        raise UserError(f"vision.name: open_clip cannot build {name}: {str(error).splitlines()[0]}") from None
    finally:
        logging.disable(logging.NOTSET)
    if not isinstance(visual, VisionTransformer | TimmModel | ModifiedResNet):
        raise UserError(f"vision.name: {name} looks through a {type(visual).__name__}, which is not read here")
    return visual.eval()


def feature_map(visual: nn.Module, images: Tensor) -> Tensor:
    """The tokens that a tower's last stage leaves, (B, S, width): class token first, if any, then the places."""
    if isinstance(visual, VisionTransformer):
        return visual.transformer(visual._embeds(images))
    if isinstance(visual, ModifiedResNet):
        x = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        return x.flatten(2).transpose(1, 2)
    x = visual.trunk.forward_features(images)
    if x.dim() == 4:  # a map: (B, width, H, W), or in Swin's (B, H, W, width)
        x = x.flatten(1, 2) if x.shape[-1] == visual.trunk.num_features else x.flatten(2).transpose(1, 2)
    return x


@lru_cache
def token_shape(name: str) -> tuple[int, int]:
    """(S, width) of :func:`feature_map` for one image, computed without weights."""
    visual = bare_tower(name)
    size = visual.image_size if isinstance(visual.image_size, tuple | list) else (visual.image_size, visual.image_size)
    with torch.no_grad():
        return tuple(feature_map(visual, torch.zeros(1, 3, *size, device="meta")).shape[1:])


def has_class_token(visual: nn.Module) -> int:
    """The number of tokens before the places: 1 for a class token, more in some of timm's, 0 in maps."""
    if isinstance(visual, TimmModel):
        return int(getattr(visual.trunk, "num_prefix_tokens", 0))
    return int(isinstance(visual, VisionTransformer))


def has_projection(visual: nn.Module) -> bool:
    """Whether the class token's norm and projection fit every token: in CLIP's vision transformers."""
    return isinstance(visual, VisionTransformer) and visual.proj is not None and visual.attn_pool is None


def blocks(visual: nn.Module) -> list[nn.Module]:
    """The transformer blocks, where class tokens can be taken and mixtures can stand; none in other towers."""
    return list(visual.transformer.resblocks) if isinstance(visual, VisionTransformer) else []
