"""A trained adapter on its base model, for notebooks, evaluation and chat."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lav2.adapter import AdaptedLlama, load_adapter, read_adapter_config
from lav2.adapter.config import NOTHING
from lav2.adapter.export import fold_tuning
from lav2.adapter.hub import find_adapter
from lav2.data.examples import Turn
from lav2.data.pictures import Picture, read_picture
from lav2.data.slots import image_prefix
from lav2.data.templates import Segment, Template, choose_template
from lav2.data.tokens import encode_prompt
from lav2.errors import UserError
from lav2.experts import Expert, Experts
from lav2.llama import BlockHooks, Tokenizer, load_llama, load_tokenizer
from lav2.llama.decoder import check_prompts
from lav2.llama.generation import generate, stream
from lav2.llama.quantization import QUANTIZATIONS, check_torchao
from lav2.llama.settings import GenerationSettings
from lav2.llama.text import AnswerText
from lav2.llama.tokenizer import tokenizer_file
from lav2.vision import VisionEncoder

AS_TRAINED = "trained"


def load(
    folder: str | Path,
    base: str | Path | None = None,
    vision_weights: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    quantize: str | None = AS_TRAINED,
    fold: bool = False,
) -> "Assistant":
    """A trained adapter on its base model.

    Args:
        folder: an adapter folder, or a run folder that holds one; where there is no such folder, ``"org/name"`` is an
            adapter on the Hugging Face Hub.
        base: the base model's folder or file; default: where it was when the adapter was trained.
        vision_weights: the image encoder's weights; default: likewise.
        dtype: of the base weights.
        device: where to run; default: a GPU if there is one.
        quantize: the base rounded as it was when the adapter was trained (``trained``), not at all (``None``), or to
            one of :data:`lav2.llama.quantization.QUANTIZATIONS`.
        fold: fold what can be into the base weights, see :func:`lav2.adapter.export.fold_tuning`: faster answers, the
            same up to rounding.

    Raises:
        UserError: something is missing, or the base or the encoder is not the one the adapter was trained with.
    """
    folder = find_adapter(folder)
    config = read_adapter_config(folder)
    base, quantize = find_base(folder, config, base), find_quantization(config, quantize)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = load_encoder(folder, config, vision_weights).to(device) if config["vision"] else None
    model = load_adapter(folder, load_llama(base, dtype, quantize), encoder).to(device)
    model = fold_tuning(model) if fold else model
    tokenizer = load_tokenizer(find_tokenizer(config, base), model.llama.config.vocab_size)
    template = choose_template(config["template"], tokenizer)
    return Assistant(model, tokenizer, encoder, template, config["caption_prompts"], fold)


def find_base(folder: Path, config: dict[str, Any], base: str | Path | None = None) -> Path:
    """The base model of the adapter in ``folder``: ``base``, or where the adapter's config says it was."""
    base = Path(base or config["base_path"])
    if not base.exists():
        raise UserError(
            f"no base model at {base}: give the folder or file of the LLaMA that {folder} was trained on as base="
        )
    return base


def find_quantization(config: dict[str, Any], quantize: str | None = AS_TRAINED) -> str | None:
    """How the base is rounded: as ``quantize`` says, or as it was when the adapter was trained.

    Raises:
        UserError: there is no such way, or torchao is not installed.
    """
    if quantize == AS_TRAINED:
        quantize = config.get("quantize")  # converted adapters do not say: they were trained on a base that is not
    if quantize in QUANTIZATIONS:
        check_torchao(quantize)
    elif quantize is not None:
        raise UserError(f"quantize is {quantize!r}; choose {AS_TRAINED}, null or one of {', '.join(QUANTIZATIONS)}")
    return quantize


def find_tokenizer(config: dict[str, Any], base: Path) -> Path:
    """The tokenizer an adapter was trained with: where its config says it was, or the one that its base brings."""
    path = Path(config["tokenizer"])  # a name alone, from the Hub, is no file in whatever folder one happens to be
    return path if path.is_absolute() and path.exists() else tokenizer_file(base)


def load_encoder(folder: Path, config: dict[str, Any], weights: str | Path | None = None) -> VisionEncoder:
    """The image encoder of the adapter in ``folder``, with ``weights``, or those it was trained with."""
    vision = config["vision"]
    weights = weights or vision["weights"]
    if not weights or not Path(weights).is_file():
        raise UserError(
            f"{folder} sees through open_clip's {vision['name']}, and there are no weights of it at {weights}: "
            "give their file as vision_weights="
        )
    encoder = VisionEncoder(**vision | {"weights": weights})
    if config["vision_fingerprint"] not in (encoder.fingerprint, None):  # None: converted without the encoder
        raise UserError(
            f"the image encoder {vision['name']} with {weights} is not the one that {folder} was trained with: "
            "give its weights as vision_weights="
        )
    return encoder


class Assistant:
    """An adapted LLaMA with its tokenizer, image encoder, prompt template and the prompts of its captions."""

    def __init__(
        self,
        model: AdaptedLlama,
        tokenizer: Tokenizer,
        encoder: VisionEncoder | None,
        template: Template,
        caption_prompts: Sequence[str] = (),
        folded: bool = False,
    ):
        self.model, self.tokenizer, self.encoder, self.template = model.eval(), tokenizer, encoder, template
        self.caption_prompts, self.folded = list(caption_prompts), folded

    def generate(
        self,
        instructions: Sequence[str],
        images: Sequence[Picture | None] | None = None,
        inputs: Sequence[str] | None = None,
        *,
        experts: Experts | Sequence[Expert] = (),
        batch_size: int = 32,
        rows: Sequence[int] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Answer each instruction.

        Args:
            instructions: what to do or to answer, one a row.
            images: a path, a PIL image or an RGB array (height, width, 3) of uint8 for each row; ``None`` for a row
                without one.
            inputs: the template's ``### Input:`` for each row: context in words.
            experts: what they say about a row's image stands below its input (sec 4.4); an adapter without a visual
                path reads that alone.
            batch_size: rows generated together; it changes no answer.
            rows: each row's number, when this call is a part of a larger whole; what is drawn depends on it.
            settings: ``max_new_tokens=64``, ``temperature=0.0``, ``top_k=0``, ``top_p=1.0``, ``num_beams=1``,
                ``length_penalty=1.0``, ``repetition_penalty=1.0``, ``stop=()``, ``seed=0``, as explained in
                :class:`lav2.llama.settings.GenerationSettings`.

        Raises:
            UserError: a setting is wrong, the lists differ in length, an image cannot be read, or a prompt is too long.
        """
        GenerationSettings.checked(settings | {"batch_size": batch_size})
        if isinstance(instructions, str):
            raise UserError("instructions is one text; give a list of them, or use stream")
        images = [None] * len(instructions) if images is None else list(images)
        inputs = [""] * len(instructions) if inputs is None else list(inputs)
        if not len(instructions) == len(images) == len(inputs):
            raise UserError(
                f"{len(instructions)} instructions, {len(images)} images and {len(inputs)} inputs: give one each a row"
            )
        inputs, images = Experts.of(experts).add_context(self, instructions, images, inputs, settings)
        prompts = [self.template.render([Turn(*row)]) for row in zip(instructions, inputs, strict=True)]
        self.encode(prompts, images)  # before the images, which take longer
        features = self.encode_images([image for image in images if image is not None])
        visual: list[Tensor | None] = [None if image is None else next(features) for image in images]
        return self.answer(prompts, visual, batch_size, rows, **settings)

    def stream(
        self,
        instruction: str,
        image: Picture | None = None,
        input: str = "",
        *,
        experts: Experts | Sequence[Expert] = (),
        **settings: Any,
    ) -> Iterator[str]:
        """The answer to one instruction in pieces as they come; together they are what :meth:`generate` returns.

        Closing the iterator, or leaving its loop and dropping it, ends the generation.

        Args:
            instruction, image, input, experts, settings: as one row of :meth:`generate`; beams cannot be streamed.

        Raises:
            UserError: as :meth:`generate`, at the call and not only at the first piece.
        """
        GenerationSettings.checked(settings)
        (input,), (image,) = Experts.of(experts).add_context(self, [instruction], [image], [input], settings)
        prompt = self.template.render([Turn(instruction, input)])
        self.encode([prompt], [image])
        visual = None if image is None else next(self.encode_images([image]))
        return self.stream_answer(prompt, visual, **settings)

    def answer(
        self,
        prompts: list[list[Segment]],
        visual: list[Tensor | None],
        batch_size: int = 32,
        rows: Sequence[int] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Continue rendered ``prompts``, each with the features (S, F) of its image or ``None``."""
        rows = range(len(prompts)) if rows is None else rows
        tokens = self.encode(prompts, visual)
        settings |= {"stop": self.stop_texts(settings)}
        text = AnswerText(self.tokenizer.decode, settings["stop"])
        answers = [""] * len(prompts)
        # Rows with and without an image take different paths; rows of similar length share a batch.
        order = sorted(range(len(prompts)), key=lambda row: (visual[row] is None, len(tokens[row])))
        with_image = [row for row in order if visual[row] is not None]
        for group in (with_image, order[len(with_image) :]):
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                new = generate(
                    self.model.llama,
                    [tokens[row] for row in batch],
                    hooks=self.bind([visual[row] for row in batch] if group is with_image else None),
                    eos_id=self.end_ids,
                    decode=self.tokenizer.decode,
                    rows=[rows[row] for row in batch],
                    **settings,
                )
                for row, ids in zip(batch, new, strict=True):
                    answers[row] = text.whole(ids)
        return answers

    def stream_answer(self, prompt: list[Segment], visual: Tensor | None, **settings: Any) -> Iterator[str]:
        """Continue one rendered ``prompt``, with the features (S, F) of its image or ``None``, in pieces."""
        return stream(
            self.model.llama,
            *self.encode([prompt], [visual]),
            self.tokenizer.decode,
            hooks=self.bind(None if visual is None else [visual]),
            eos_id=self.end_ids,
            **settings | {"stop": self.stop_texts(settings)},
        )

    @torch.inference_mode()
    def bind(self, visual: list[Tensor] | None) -> list[BlockHooks]:
        """The adapter for a batch, with the features (S, F) of each row's image or without images."""
        return self.model.bind(None if visual is None else torch.stack(visual), keep=True)

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's and, in a chat template, the one that ends a turn."""
        names = [self.template.stop] if self.template.stop in self.template.control_tokens else []
        return [*self.tokenizer.stop_ids, *map(self.tokenizer.token_id, names)]

    def stop_texts(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts that end an answer: those in ``settings`` and the template's own."""
        stop = GenerationSettings.checked(settings).stop
        template = self.template.stop
        return (*stop, template) if template and template not in self.template.control_tokens else stop

    def encode(self, prompts: Sequence[Sequence[Segment]], images: Sequence[Any] | None = None) -> list[list[int]]:
        """Token ids of rendered prompts, each with its image (or what stands for it) or ``None``.

        Raises:
            UserError: one leaves no room for an answer.
        """
        has_image = [False] * len(prompts) if images is None else [image is not None for image in images]
        tokens = [self.prompt_tokens(*row) for row in zip(prompts, has_image, strict=True)]
        check_prompts(self.model.llama.config, tokens)
        return tokens

    def prompt_tokens(self, prompt: Sequence[Segment], has_image: bool) -> list[int]:
        """Token ids of a rendered prompt, with places for an image where the model reads images as tokens."""
        return encode_prompt(self.tokenizer, prompt, self.prefix(has_image))

    def prefix(self, has_image: bool) -> Sequence[int]:
        """What a sample begins with in the place of BOS, where the model reads images as tokens; else nothing."""
        config = self.model.config
        return image_prefix(self.tokenizer, config.visual_length, has_image) if config.fusion == "tokens" else ()

    def encode_images(self, images: Iterable[Picture]) -> Iterator[Tensor]:
        """The frozen encoder's features (S, F) of each image, one after another; its pixels where it is adapted too."""
        for image in images:
            if self.encoder is None:
                raise UserError("this adapter was trained without images, so it cannot see one")
            pixels = self.encoder.preprocess(read_picture(image))[None].to(self.device)
            yield pixels[0] if self.model.config.mixture.vision_blocks else self.encoder(pixels)[0]

    def sibling(self, folder: str | Path, vision_weights: str | Path | None = None) -> "Assistant":
        """Another adapter on this base: the frozen weights are in memory once, the encoder's too if it is the same.

        Args:
            folder, vision_weights: see :func:`load`.

        Raises:
            UserError: as for :func:`load`.
        """
        self.need_the_base_itself()
        folder = find_adapter(folder)
        config = read_adapter_config(folder)
        encoder = self.encoder if config["vision"] else None
        if config["vision"] and (encoder is None or encoder.fingerprint != config["vision_fingerprint"]):
            encoder = load_encoder(folder, config, vision_weights).to(self.device)
        model = load_adapter(folder, self.model.llama, encoder).to(self.device)
        template = choose_template(config["template"], self.tokenizer)
        return Assistant(model, self.tokenizer, encoder, template, config["caption_prompts"])

    def bare(self) -> "Assistant":
        """The base model alone, in the same template: what it answered before it was adapted. It sees no images."""
        self.need_the_base_itself()
        return Assistant(AdaptedLlama(self.model.llama, NOTHING, None), self.tokenizer, None, self.template)

    def need_the_base_itself(self) -> None:
        if self.folded:
            raise UserError("this adapter is folded into its base (fold=true), which serves no other: load it unfolded")

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.llama.tok_embeddings.weight.device
