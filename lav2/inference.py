"""A trained adapter on its base model, for notebooks, evaluation and chat."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lav2.adapter import AdaptedLlama, load_adapter, read_adapter_config
from lav2.data.images import load_image
from lav2.data.templates import Template, choose_template
from lav2.errors import UserError
from lav2.llama import Tokenizer, load_llama
from lav2.llama.generation import generate
from lav2.vision import VisionEncoder

Picture = str | Path | Image.Image


def load(
    folder: str | Path,
    base: str | Path | None = None,
    vision_weights: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> "Assistant":
    """A trained adapter on its base model.

    Args:
        folder: an adapter folder, or a run folder that holds one.
        base: the base model's folder; default: where it was when the adapter was trained.
        vision_weights: the image encoder's weights; default: likewise.
        dtype: of the base weights.
        device: where to run; default: a GPU if there is one.

    Raises:
        UserError: something is missing, or the base or the encoder is not the one the adapter was trained with.
    """
    folder = Path(folder)
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    config = read_adapter_config(folder)
    base = Path(base or config["base_path"])
    if not base.exists():
        raise UserError(f"no base model at {base}: give the folder of the LLaMA that {folder} was trained on as base=")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = None
    if vision := config["vision"]:
        encoder = VisionEncoder(**vision | ({"weights": vision_weights} if vision_weights else {}))
        if encoder.fingerprint != config["vision_fingerprint"]:
            raise UserError(
                f"the image encoder {vision['name']} with {vision_weights or vision['weights']} is not the one that "
                f"{folder} was trained with: give its weights as vision_weights="
            )
        encoder.to(device)
    model = load_adapter(folder, load_llama(base, dtype)).to(device)
    tokenizer = Tokenizer(config["tokenizer"] if Path(config["tokenizer"]).exists() else base / "tokenizer.model")
    template = choose_template(config["template"], tokenizer)
    return Assistant(model, tokenizer, encoder, template, config["caption_prompts"])


class Assistant:
    """An adapted LLaMA with its tokenizer, image encoder, prompt template and the prompts of its captions."""

    def __init__(
        self,
        model: AdaptedLlama,
        tokenizer: Tokenizer,
        encoder: VisionEncoder | None,
        template: Template,
        caption_prompts: Sequence[str] = (),
    ):
        self.model, self.tokenizer, self.encoder, self.template = model.eval(), tokenizer, encoder, template
        self.caption_prompts = list(caption_prompts)

    def generate(
        self,
        instructions: Sequence[str],
        images: Sequence[Picture | None] | None = None,
        inputs: Sequence[str] | None = None,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Answer each instruction.

        Args:
            instructions: what to do or to answer, one a row.
            images: a path or PIL image for each row, ``None`` for a row without one.
            inputs: the template's ``### Input:`` for each row: context in words, for example an expert's.
            max_new_tokens, temperature, top_p, seed: see :func:`lav2.llama.generation.generate`.
            batch_size: rows generated together; it does not change greedy answers.

        Raises:
            UserError: the lists differ in length, an image cannot be read, or a prompt is too long.
        """
        images = [None] * len(instructions) if images is None else list(images)
        inputs = [""] * len(instructions) if inputs is None else list(inputs)
        if not len(instructions) == len(images) == len(inputs):
            raise UserError(
                f"{len(instructions)} instructions, {len(images)} images and {len(inputs)} inputs: give one each a row"
            )
        prompts = [self.template.prompt(*row) for row in zip(instructions, inputs, strict=True)]
        features = self.encode_images([image for image in images if image is not None])
        visual: list[Tensor | None] = [None if image is None else next(features) for image in images]
        return self.answer(
            prompts, visual, batch_size, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )

    def answer(self, prompts: list[str], visual: list[Tensor | None], batch_size: int, **settings) -> list[str]:
        """Continue rendered ``prompts``, each with the features (S, F) of its image or ``None``."""
        tokens = [self.tokenizer.encode(prompt) for prompt in prompts]
        answers = [""] * len(prompts)
        # Rows with and without an image take different paths; rows of similar length share a batch.
        order = sorted(range(len(prompts)), key=lambda row: (visual[row] is None, len(tokens[row])))
        with_image = [row for row in order if visual[row] is not None]
        for rows in (with_image, order[len(with_image) :]):
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                with torch.inference_mode():
                    features = torch.stack([visual[row] for row in batch]) if rows is with_image else None
                    hooks = self.model.bind(features, keep=True)
                new = generate(
                    self.model.llama,
                    [tokens[row] for row in batch],
                    hooks=hooks,
                    eos_id=self.tokenizer.eos_id,
                    **settings,
                )
                for row, ids in zip(batch, new, strict=True):
                    answers[row] = self.tokenizer.decode(ids).strip()
        return answers

    def encode_images(self, images: Iterable[Picture]) -> Iterable[Tensor]:
        """The frozen encoder's features (S, F) of each image, one after another."""
        for image in images:
            if self.encoder is None:
                raise UserError("this adapter was trained without images, so it cannot see one")
            if not isinstance(image, Image.Image):
                try:
                    image = load_image(Path(image))
                except OSError as error:
                    raise UserError(f"cannot read the image {image}: {error}") from None
            pixels = self.encoder.preprocess(image)[None].to(self.device)
            yield self.encoder(pixels)[0]

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.llama.tok_embeddings.weight.device
