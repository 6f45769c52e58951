"""A frozen transformer that learns to tell classes by zero-initialised attention and a linear head (V1 paper)."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lav2.adapter.elsewhere import ZeroInitBackbone
from lav2.errors import UserError
from lav2.llama.loading import check_tensors, fingerprint

CONFIG, WEIGHTS = "classifier_config.json", "classifier.safetensors"
FORMAT = 1


class ZeroInitClassifier(nn.Module):
    """Logits from the backbone's features: prompts, gates and head train, all else is frozen.

    An image is read by what a vision transformer returns for it, a text by the state of its first token.

    Args:
        backbone: see :class:`lav2.adapter.elsewhere.ZeroInitBackbone`; one of timm's is built with ``num_classes=0``.
        num_classes: number of classes.
        prompt_length, prompt_layers: likewise; ``prompt_layers=0`` leaves the linear head alone.

    Raises:
        UserError: prompts cannot enter the backbone, or it has a head of its own.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, prompt_length: int = 10, prompt_layers: int | None = None
    ):
        super().__init__()
        self.settings = {
            "num_classes": num_classes,
            "prompt_length": prompt_length,
            "prompt_layers": prompt_layers,
        }
        self.model = ZeroInitBackbone(backbone, prompt_length, prompt_layers)
        self.head = nn.Linear(feature_width(backbone), num_classes)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Preprocessed images (B, 3, H, W), or what a tokenizer gives for B texts → logits (B, num_classes)."""
        output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        features = output if isinstance(output, Tensor) else output.last_hidden_state[:, 0]
        return self.head(features.to(self.head.weight.dtype))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are not the backbone's, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("model.backbone.")}

    def save(self, folder: str | Path) -> None:
        """Write what was trained to ``folder``, without the backbone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in self.trained().items()}, folder / WEIGHTS)
        backbone = self.model.backbone
        config = {
            "format": FORMAT,
            **self.settings,
            "backbone": {"kind": type(backbone).__name__, "fingerprint": fingerprint(backbone)},
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, backbone: nn.Module) -> "ZeroInitClassifier":
        """The classifier in ``folder`` on ``backbone``, the one it was trained on.

        Raises:
            UserError: there is none, the backbone is another one, or a tensor is missing, unexpected or misshapen.
        """
        path = Path(folder) / CONFIG
        if not path.is_file():
            raise UserError(f"no classifier at {folder}: {CONFIG} is missing")
        config = json.loads(path.read_text())
        if config.pop("format", None) != FORMAT:
            raise UserError(f"{path} is not of format {FORMAT}, which this version of lav2 reads")
        trained_on = config.pop("backbone")
        found = {"kind": type(backbone).__name__, "fingerprint": fingerprint(backbone)}
        if found != trained_on:
            raise UserError(
                f"the classifier in {folder} was trained on another backbone: {trained_on}, this is {found}"
            )
        try:
            state = load_file(Path(folder) / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {Path(folder) / WEIGHTS}: {error}") from None
        model = cls(backbone, **config)
        check_tensors(state, {name: p.shape for name, p in model.trained().items()}, Path(folder) / WEIGHTS)
        model.load_state_dict(state, strict=False)  # the backbone has its own already
        return model.eval()


def feature_width(backbone: nn.Module) -> int:
    """The width of the features that the head reads.

    Raises:
        UserError: what the backbone returns are classes already.
    """
    if getattr(backbone, "num_classes", 0):
        raise UserError("the backbone has a head of its own: build timm's models with num_classes=0")
    for name in ("output_dim", "num_features"):  # open_clip's vision transformer; timm's
        if hasattr(backbone, name):
            return getattr(backbone, name)
    return backbone.config.hidden_size
