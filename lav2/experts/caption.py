"""The project's own captioner as an expert: a V1 or V2 adapter (V2 paper, sec 4.4)."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lav2.errors import UserError
from lav2.experts.images import digest

if TYPE_CHECKING:
    from lav2.inference import Assistant


class CaptionExpert:
    """Captions by an adapter that was trained on them.

    Args:
        captioner: a loaded assistant; or an adapter folder or a run folder, whose adapter goes onto the frozen base of
            the model that answers: two adapters, one base in memory.
        prompt: the instruction; default: the one that its captions were trained with first.
        name: as the prompt shows it.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.

    Raises:
        UserError: there is no such folder; later, that its adapter belongs to another base.
    """

    def __init__(
        self, captioner: "Assistant | str | Path", prompt: str | None = None, name: str = "caption", **generation: Any
    ):
        if isinstance(captioner, str | Path) and not Path(captioner).is_dir():
            raise UserError(f"no captioner at {captioner}: name an adapter folder or a run folder")
        self.captioner, self.prompt, self.name, self.generation = captioner, prompt, name, generation

    def share_base(self, assistant: "Assistant") -> None:
        """Load a captioner that is a folder still, on the base of ``assistant``."""
        if isinstance(self.captioner, str | Path):
            self.captioner = assistant.sibling(self.captioner)

    @cached_property
    def fingerprint(self) -> str:
        model = self.captioner.model
        return digest(self.instruction(), self.generation, model.llama.config, model.adapter.state_dict())

    def instruction(self) -> str:
        """What the captioner is asked."""
        prompts = self.captioner.caption_prompts
        if self.prompt is None and not prompts:
            raise UserError("this captioner was trained on no captions: give the instruction as prompt=")
        return self.prompt or prompts[0]

    def __call__(self, image: Image.Image) -> str:
        if isinstance(self.captioner, str | Path):
            raise UserError("the captioner has no base yet: ask it through generate(…, experts=[…]), or give it loaded")
        return self.captioner.generate([self.instruction()], [image], **self.generation)[0]
