"""CLIP's two towers, and the tags that it finds most alike an image (V2 paper, sec 4.4)."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from rich.progress import track
from torch import Tensor

from lav2.errors import UserError
from lav2.experts.images import digest


class Clip:
    """An open_clip model with both towers: images and texts → unit vectors whose products are their similarities.

    Args:
        name: an open_clip model, such as ``ViT-L-14``.
        weights: the file of its weights, both towers, safetensors or ``.pt``.
        device: where it runs; default: a GPU if there is one.

    Raises:
        UserError: there is no such model or file, or they do not fit.
    """

    def __init__(self, name: str, weights: str | Path, device: str | None = None):
        if name not in open_clip.list_models():  # other names would be looked up on the network
            raise UserError(f"open_clip has no model {name!r}; see open_clip.list_models()")
        if not Path(weights).is_file():
            raise UserError(f"no weights of open_clip's {name} at {weights}: name the file")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            model = open_clip.create_model(name, pretrained=str(weights), weights_only=True)
            self.tokenize = open_clip.get_tokenizer(name)
        except Exception as error:  # of many kinds, by what is damaged or does not fit
            message = " ".join(str(error).split())[:300]
            raise UserError(f"open_clip cannot load {name} with {weights}: {message}") from None
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        self.scale = float(model.logit_scale.detach().exp())

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.model.visual.preprocess_cfg, self.model.state_dict())

    @torch.inference_mode()
    def encode_image(self, image: Image.Image) -> Tensor:
        """The vector (D,) of an image."""
        pixels = self.transform(image.convert("RGB"))[None].to(self.device)
        return self.model.encode_image(pixels, normalize=True)[0].float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """The vectors (texts, D) of texts."""
        starts = range(0, len(texts), batch_size)
        vectors = [
            self.model.encode_text(
                self.tokenize(list(texts[start : start + batch_size])).to(self.device), normalize=True
            )
            for start in (track(starts, "encoding texts") if len(starts) > 1 else starts)
        ]
        return torch.cat(vectors).float().cpu()


@lru_cache(maxsize=2)
def load_clip(name: str, weights: str | Path, device: str | None = None) -> Clip:
    """A :class:`Clip` that experts share."""
    return Clip(name, weights, device)


class Tags:
    """The words of a vocabulary that CLIP finds most alike an image: zero-shot classification, the likeliest first.

    Args:
        clip: a :class:`Clip`.
        vocabulary: the words, or a file with one on each line.
        template: makes a sentence of a word, at ``{}``.
        count: the most tags.
        min_probability: tags are left out whose share of the softmax over the vocabulary is less.
        name: as the prompt shows it.

    Raises:
        UserError: there is no such file, or it is empty.
    """

    def __init__(
        self,
        clip: Clip,
        vocabulary: Sequence[str] | str | Path,
        template: str = "a photo of a {}",
        count: int = 5,
        min_probability: float = 0.05,
        name: str = "tags",
    ):
        self.words = read_lines(vocabulary) if isinstance(vocabulary, str | Path) else list(vocabulary)
        if not self.words:
            raise UserError(f"the vocabulary {vocabulary} has no words")
        self.clip, self.count, self.min_probability, self.name = clip, count, min_probability, name
        self.vectors = clip.encode_texts([template.format(word) for word in self.words])
        self.fingerprint = digest(clip.fingerprint, self.words, template, count, min_probability)

    def __call__(self, image: Image.Image) -> str:
        probabilities = (self.clip.scale * self.vectors @ self.clip.encode_image(image)).softmax(0)
        likeliest = probabilities.topk(min(self.count, len(self.words)))
        return ", ".join(
            self.words[index]
            for probability, index in zip(*(part.tolist() for part in likeliest), strict=True)
            if probability >= self.min_probability
        )


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        UserError: there is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # JSON may hold the other signs that end a line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return [line.strip() for line in lines if line.strip()]
