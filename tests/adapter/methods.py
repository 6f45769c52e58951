"""Every method of the family, small, and rows for it to read: what the tests of the invariants go through."""

import torch
from torch import Tensor

from lav2.adapter import AdaptedLlama, adapt
from lav2.adapter.hooks import OuterHooks
from lav2.data.slots import IMAGE, MODALITY
from lav2.llama import BlockHooks, Llama
from lav2.vision import VisionEncoder
from tests.conftest import small_adapter

V1 = {
    "visual_layers": 0,
    "bias": False,
    "scale": "none",
    "norms": "none",
    "ownership": "shared",
    "fusion": "late",
    "visual_length": 5,
}
FAMILY = {
    "v1_caption": V1,
    "v1_one_query": V1 | {"visual_length": 1},
    "v1_scienceqa": V1 | {"projector": {"kind": "bottleneck", "width": 8, "scales": 5}},
    "v1_scalar_gate": V1 | {"gate": "scalar", "gate_activation": "none"},
    "v2_lora": {"bias": False, "scale": "none", "lora": {"rank": 3, "scaling": 0.5}},
    "v2_lora_and_bias": {"lora": {"rank": 3, "linears": ["wq", "wv", "w2"]}},
    "released": V1 | {"lora": {"rank": 2}, "new_gate": True, "prompt_projection": "frozen", "norms": "all"},
}
LAVIN = {
    "fusion": "tokens",
    "visual_layers": 0,
    "visual_length": 3,
    "prompt_layers": 0,
    "prompt_length": 0,
    "bias": False,
    "scale": "none",
    "norms": "none",
    "ownership": "shared",
    "projector": {"kind": "mlp", "width": 8},
    "mixture": {"width": 4, "groups": 2, "temperature": 2.0, "vision_blocks": 6, "vision_width": 96},
}
METHODS = {"v1": V1 | {"fusion": "early"}, "v2": {}, **FAMILY, "lavin": LAVIN}  # v1: its language model, without eyes
SEEING = [name for name in METHODS if name != "v1"]


def away_from_start(model: AdaptedLlama) -> AdaptedLlama:
    """As if it had been trained: every parameter is away from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def trained(llama: Llama, changes: dict) -> AdaptedLlama:
    return away_from_start(adapt(llama, small_adapter(**changes), feature_width=16))


def lavin(llama: Llama, encoder: VisionEncoder, **mixture) -> AdaptedLlama:
    changes = LAVIN | {"mixture": LAVIN["mixture"] | mixture}
    return away_from_start(adapt(llama, small_adapter(**changes), encoder.width, encoder))


class Method:
    """One method at its start, three rows about images, the same as text alone, and what it sees of the images."""

    def __init__(self, name: str, llama: Llama, tokens: Tensor, features: Tensor, encoder: VisionEncoder, pixels):
        lavin = name == "lavin"
        self.model = adapt(llama, small_adapter(**METHODS[name]), encoder.width if lavin else 16, encoder).eval()
        self.config = self.model.config
        self.has_image = torch.tensor([True, False, True])  # of a mixed batch
        self.visual = (pixels if lavin else features) if self.config.sees else None
        self.seen = self.text = tokens
        if lavin:
            prefixes = ([MODALITY, 1, 20, IMAGE, IMAGE, IMAGE], [MODALITY, 1, 20, 21, 22, 23])
            self.seen, self.text = (torch.cat((torch.tensor([p] * 3), tokens), 1) for p in prefixes)
        self.mixed = torch.where(self.has_image[:, None], self.seen, self.text)

    def trained(self) -> AdaptedLlama:
        return away_from_start(self.model)

    def frozen(self, tokens: Tensor, visual: Tensor | None) -> Tensor:
        """The frozen model's logits of the same tokens; LaVIN's image and modality tokens are embedded for it."""
        if self.config.fusion != "tokens":
            return self.model.llama(tokens)
        adapter = self.model.adapter
        images = None if visual is None else adapter["caption"].projector(self.model.encoder(visual))
        outer = OuterHooks(None, True, adapter["instruction"].modality, images)
        return self.model.llama(tokens, hooks=[BlockHooks()] * len(self.model.llama.layers) + [outer])

    def step(self, optimizer: torch.optim.Optimizer, tasks: tuple[str, ...] = ("caption", "instruction")) -> None:
        """One step of training on a batch of each task: captions are about images, instructions are text."""
        optimizer.zero_grad()
        for task in tasks:
            given = (self.seen, self.visual) if task == "caption" else (self.text, None)
            self.loss(*given, task).backward()
        optimizer.step()

    def loss(self, tokens: Tensor, visual: Tensor | None, task: str) -> Tensor:
        logits = self.model(tokens, visual, task)[:, 1:]  # LaVIN's modality token answers nothing
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].clamp(min=0).flatten())
