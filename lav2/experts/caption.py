"""The project's own captioner as an expert: a V1 or V2 adapter (V2 paper, sec 4.4)."""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lav2.adapter import read_adapter_config
from lav2.errors import UserError
from lav2.experts.images import digest
from lav2.llama.loading import fingerprint
from lav2.run_folder import RECORD

if TYPE_CHECKING:
    from lav2.inference import Assistant


class CaptionExpert:
    """Captions by an adapter that was trained on them.

    Args:
        captioner: a loaded assistant; or an adapter folder or a run folder, whose adapter goes onto the frozen base of
            the model that answers: two adapters, one base in memory. ``None``: the newest finished run in ``runs`` on
            that base, or the model that answers where there is none; a line on stderr says which.
        prompt: the instruction; default: the one that its captions were trained with first.
        name: as the prompt shows it.
        runs: where to look for a captioner that is not named; by default V1's, as in the paper.
        generation: settings of :meth:`lav2.inference.Assistant.generate`.

    Raises:
        UserError: there is no such folder; later, that its adapter belongs to another base.
    """

    def __init__(
        self,
        captioner: "Assistant | str | Path | None" = None,
        prompt: str | None = None,
        name: str = "caption",
        runs: str | Path = "outputs/v1_coco_caption_7b",
        **generation: Any,
    ):
        if isinstance(captioner, str | Path) and not Path(captioner).is_dir():
            raise UserError(f"no captioner at {captioner}: name an adapter folder or a run folder")
        self.captioner, self.prompt, self.name, self.runs, self.generation = captioner, prompt, name, runs, generation

    def share_base(self, assistant: "Assistant") -> None:
        """Load a captioner that is a folder still, on the base of ``assistant``, or choose one."""
        if self.captioner is None:
            self.captioner = self.choose(assistant)
        if isinstance(self.captioner, str | Path):
            self.captioner = assistant.sibling(self.captioner)

    def choose(self, assistant: "Assistant") -> "Assistant":
        """The newest finished run in ``runs`` that fits, or the model that answers; a line on stderr says which."""
        who, captioner = f"the model that answers ({self.runs} holds no finished run on its base)", assistant
        if assistant.folded:
            who = "the model that answers (fold=true leaves no base for another)"
        for run in [] if assistant.folded else finished_runs(self.runs, fingerprint(assistant.model.llama)):
            try:
                who, captioner = run, assistant.sibling(run)
                break
            except UserError as error:
                print(f"{run} cannot caption: {error}", file=sys.stderr)
        print(f"captions are by {who}; experts.caption.captioner=… names another run", file=sys.stderr)
        return captioner

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
        if self.captioner is None or isinstance(self.captioner, str | Path):
            raise UserError("the captioner has no base yet: ask it through generate(…, experts=[…]), or give it loaded")
        return self.captioner.generate([self.instruction()], [image], **self.generation)[0]


def finished_runs(folder: str | Path, base: str) -> Iterator[Path]:
    """The finished runs in ``folder`` whose adapters are of the base with the fingerprint ``base``, newest first."""
    for record in sorted(Path(folder).rglob(RECORD), key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(ValueError, UserError):  # what cannot be read is no finished run
            adapter = record.parent / "adapter"
            finished = json.loads(record.read_text()).get("state") == "finished"
            if finished and read_adapter_config(adapter)["base"]["fingerprint"] == base:
                yield record.parent
