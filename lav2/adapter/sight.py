"""Whether an image encoder fits an adapter, by the settings of both alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from lav2.adapter.config import AdapterConfig
from lav2.vision.encoder import token_count
from lav2.vision.towers import bare_tower, blocks, token_shape


def sight_problems(adapter: AdapterConfig, vision: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with an adapter that sees through the encoder of the settings ``vision``, one line each.

    Raises:
        UserError: open_clip has no such encoder, or cannot build it.
    """
    mixture, projector, name = adapter.mixture, adapter.projector, vision["name"]
    if mixture.vision_blocks:
        depth, width = len(blocks(bare_tower(name))), token_shape(name)[1]
        if (mixture.vision_blocks, mixture.vision_width) != (depth, width):
            yield (
                f"adapter.mixture.vision_blocks and vision_width are {mixture.vision_blocks} and "
                f"{mixture.vision_width}; {name} has {depth} transformer blocks, {width} wide"
            )
    if projector.kind == "bottleneck" and len(vision["layers"] or []) != projector.scales:
        yield (
            f"adapter.projector.scales is {projector.scales} and vision.layers {vision['layers']}: a bottleneck "
            "joins the class tokens of so many layers (vision.tokens=class_tokens)"
        )
    if adapter.fusion == "tokens":
        yield from image_token_problems(adapter, vision)


def image_token_problems(adapter: AdapterConfig, vision: Mapping[str, Any]) -> Iterator[str]:
    """Whether there are ``visual_length`` image tokens and, for LaVIN, class tokens as the encoder's blocks leave them,
    without CLIP's last norm and projection (its parameter counts are of 1024-wide tokens)."""
    kind, length, depth = adapter.projector.kind, adapter.visual_length, len(blocks(bare_tower(vision["name"])))
    each = token_count(vision["name"], vision["tokens"], vision["layers"])
    made = {"queries": length, "mlp": each, "linear_patches": each}.get(kind, 1)
    if made != length:
        ways = [f"adapter.visual_length={made}"]
        if kind == "mlp" and 0 < length <= depth:
            layers = ",".join(str(depth * number // length) for number in range(1, length + 1))
            ways.insert(0, f"vision.tokens=class_tokens vision.layers=[{layers}] vision.projected=false")
        yield (
            f"adapter.visual_length is {length}, but adapter.projector.kind={kind} makes {made} image tokens of the "
            f"{each} that vision.tokens={vision['tokens']} gives: set {', or '.join(ways)}"
        )
    elif adapter.mixture.vision_blocks and vision["tokens"] == "class_tokens" and vision["projected"]:
        yield "vision.projected is true, but LaVIN reads class tokens as CLIP's blocks leave them: set it to false"
