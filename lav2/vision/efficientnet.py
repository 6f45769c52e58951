"""EfficientNets' weights under the names of the package efficientnet_pytorch, for timm's models."""

from collections.abc import Mapping

from torch import Tensor, nn

STEM = "_conv_stem.weight"  # what tells such a file

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Inside a block: timm counts norms and pointwise convolutions from the first one that the block has.
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_state(state: Mapping[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``state`` by the names they have in timm's EfficientNet ``trunk``, each name behind ``trunk.``.

    A name that is in no table stays as it is, for the strict loading to refuse.
    """
    blocks = [
        (f"{stage}.{place}", EXPANDING if hasattr(block, "conv_pwl") else FIRST)
        for stage, inside in enumerate(trunk.blocks)
        for place, block in enumerate(inside)
    ]

    def rename(name: str) -> str:
        part, _, rest = name.partition(".")
        if part != "_blocks":
            return f"{OUTER.get(part, part)}.{rest}"
        number, layer, rest = rest.split(".", 2)
        place, layers = blocks[int(number)] if int(number) < len(blocks) else (number, EXPANDING)
        return f"blocks.{place}.{layers.get(layer, layer)}.{rest}"

    return {f"trunk.{rename(name)}": tensor for name, tensor in state.items()}
