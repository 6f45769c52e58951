"""Captions and objects by any model of transformers made for them (V2 paper, sec 4.4)."""

from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from lav2.errors import UserError
from lav2.experts.boxes import describe_boxes
from lav2.experts.images import digest


class TransformersCaption:
    """A captioner that needs no prompt, such as BLIP, GIT or ViT-GPT2.

    Args:
        model: its folder, or its name on the Hugging Face Hub.
        max_new_tokens: the longest caption.
        device: where it runs; default: a GPU if there is one.
        name: as the prompt shows it.

    Raises:
        UserError: transformers is missing, or cannot load it.
    """

    def __init__(self, model: str | Path, max_new_tokens: int = 40, device: str | None = None, name: str = "caption"):
        self.processor, self.tokenizer, self.model = load(
            model, device, "AutoImageProcessor", "AutoTokenizer", "AutoModelForImageTextToText"
        )
        self.max_new_tokens, self.name = max_new_tokens, name

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.max_new_tokens, self.model.state_dict())

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        pixels = self.processor(image.convert("RGB"), return_tensors="pt").pixel_values.to(self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


class TransformersDetection:
    """Objects by a detector such as DETR, YOLOS or RT-DETR, as :func:`lav2.experts.boxes.describe_boxes` says them.

    Args:
        model, device, name: see :class:`TransformersCaption`.
        min_score: objects it is less sure of, from 0 to 1, are left out.

    Raises:
        UserError: transformers is missing, or cannot load it.
    """

    def __init__(self, model: str | Path, min_score: float = 0.7, device: str | None = None, name: str = "objects"):
        self.processor, self.model = load(model, device, "AutoImageProcessor", "AutoModelForObjectDetection")
        self.min_score, self.name = min_score, name

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.min_score, self.model.state_dict())

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        found = self.model(**self.processor(image.convert("RGB"), return_tensors="pt").to(self.model.device))
        # boxes are asked for in a picture of one by one: shares of its width and height
        objects = self.processor.post_process_object_detection(found, self.min_score, target_sizes=[(1, 1)])[0]
        names = self.model.config.id2label
        return describe_boxes(
            (names[int(label)], tuple(box.tolist()))
            for label, box in zip(objects["labels"], objects["boxes"], strict=True)
        )


def load(model: str | Path, device: str | None, *classes: str) -> list:
    """What transformers' auto ``classes``, the network last, make of ``model``."""
    try:
        import transformers
    except ImportError:
        raise UserError('this expert needs transformers: pip install -e ".[transformers]"') from None
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise UserError(f"no model at {model}: name a folder, or a model on the Hugging Face Hub")
    try:
        parts = [getattr(transformers, name).from_pretrained(model) for name in classes]
    except Exception as error:  # of many kinds, by what is missing or damaged
        raise UserError(f"transformers cannot load {model}: {' '.join(str(error).split())[:300]}") from None
    parts[-1].eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return parts
