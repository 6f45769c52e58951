"""LLaMA-Adapter: what is added to a frozen LLaMA, and the adapted model (V2 paper, sec 4; V1 paper, sec 3).

The adapter is apart from the base: its parameters live in modules of their own and enter a block through
:class:`lav2.llama.BlockHooks`. So the base is frozen by construction, several adapters can share one, and leaving the
adapter out gives the base back exactly.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lav2.adapter.config import LINEARS, AdapterConfig, MixtureConfig
from lav2.adapter.hooks import AdapterHooks, OuterHooks, Seen
from lav2.adapter.mixture import MixtureOfModality
from lav2.adapter.ownership import trains, used
from lav2.adapter.prompts import AdaptationPrompts, Gate
from lav2.adapter.tuning import LinearTuning, LowRank, NormTuning
from lav2.errors import UserError
from lav2.llama import BlockHooks, Llama
from lav2.llama.model import Block
from lav2.vision.encoder import VisionEncoder
from lav2.vision.projector import BottleneckProjector, LinearProjector, QueryProjector


class LayerTuning(nn.Module):
    """What the instruction group adds to one block: bias tuning, LoRA, norms, mixture and, in the last L, prompts."""

    def __init__(self, block: Block, config: AdapterConfig, prompts: AdaptationPrompts | None):
        super().__init__()
        self.prompts = prompts
        self.linears = nn.ModuleDict()
        for name in LINEARS:
            linear = getattr(block.attention if hasattr(block.attention, name) else block.feed_forward, name)
            bias = config.bias and name in config.linears
            scale = config.scale if name in config.linears else "none"
            low_rank = config.lora.rank and name in config.lora.linears
            if bias or scale != "none" or low_rank:
                lora = LowRank(linear, config.lora.rank, config.lora.scaling) if low_rank else None
                self.linears[name] = LinearTuning(linear, bias, scale, lora)
        names = () if config.norms == "none" else ("attention_norm", "ffn_norm")
        self.norms = nn.ModuleDict({name: NormTuning(getattr(block, name)) for name in names})
        size = block.attention.wq.in_features
        self.mixture = new_mixture(size, config.mixture) if config.mixture.width else None


class InstructionGroup(nn.Module):
    """Late adaptation prompts with gates, norms, biases and scales: trained on language instructions (sec 4.2)."""

    def __init__(self, llama: Llama, config: AdapterConfig):
        super().__init__()
        shape = llama.config
        first = shape.num_layers - config.last_layers(shape)
        self.layers = nn.ModuleList(
            LayerTuning(
                block,
                config,
                AdaptationPrompts(config.prompt_length, shape.hidden_size, new_gate(llama, config))
                if index >= first
                else None,
            )
            for index, block in enumerate(llama.layers)
        )
        self.norm = NormTuning(llama.norm) if config.norms == "all" else None
        # LaVIN's modality token: without an image, with one
        self.modality = nn.Parameter(torch.randn(2, shape.hidden_size)) if config.fusion == "tokens" else None


class CaptionGroup(nn.Module):
    """The visual projector and the gates of early fusion: trained on captions (sec 4.2, 4.3)."""

    def __init__(self, llama: Llama, config: AdapterConfig, feature_width: int):
        super().__init__()
        size, projector = llama.config.hidden_size, config.projector
        if projector.kind == "queries":
            self.projector = QueryProjector(
                feature_width, size, projector.width, projector.blocks, projector.heads, config.visual_length
            )
        elif projector.kind in ("bottleneck", "mlp"):
            scales = projector.scales if projector.kind == "bottleneck" else None
            self.projector = BottleneckProjector(feature_width, size, projector.width, scales)
        else:
            self.projector = LinearProjector(feature_width, size, pooled=projector.kind == "linear_pooled")
        early = config.visual_layers if config.fusion == "early" else 0
        self.gates = nn.ModuleList(new_gate(llama, config) for _ in range(early))
        mixture = config.mixture  # in the image encoder
        self.mixtures = nn.ModuleList(new_mixture(mixture.vision_width, mixture) for _ in range(mixture.vision_blocks))


def new_gate(llama: Llama, config: AdapterConfig) -> Gate:
    return Gate(llama.config.num_heads, config.gate == "per_head", config.gate_activation == "tanh", config.new_gate)


def new_mixture(size: int, config: MixtureConfig) -> MixtureOfModality:
    return MixtureOfModality(size, config.width, config.groups, config.temperature, config.dropout)


class AdaptedLlama(nn.Module):
    """A frozen LLaMA and its adapter: tokens (B, T), features (B, S, F) or None → logits (B, T, V).

    ``llama`` holds what is frozen, ``adapter`` all that trains: ``adapter.caption`` and ``adapter.instruction``. An
    adapter with mixtures in the image encoder needs the ``encoder`` as well, and reads pixels in place of features.
    """

    def __init__(
        self, llama: Llama, config: AdapterConfig, feature_width: int | None, encoder: VisionEncoder | None = None
    ):
        super().__init__()
        self.config = config
        self.feature_width = feature_width
        self.llama = llama.requires_grad_(False)
        self.encoder = encoder if config.mixture.vision_blocks else None
        groups = {"instruction": InstructionGroup(llama, config)}
        if config.sees:
            groups["caption"] = CaptionGroup(llama, config, feature_width)
        self.adapter = nn.ModuleDict(groups)
        if config.gate_init == "random":  # drawn last: all else starts as it does beside gates of zero
            for gate in filter(lambda module: isinstance(module, Gate), self.adapter.modules()):
                nn.init.normal_(gate.weight)

    def forward(
        self, tokens: Tensor, visual: Tensor | None = None, task: str | None = None, has_image: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V).

        Args:
            tokens: (B, T), padded at the right or not at all.
            visual: features (B, S, F) of one image a row from the frozen encoder, or its pixels (B, 3, H, W) where the
                encoder is adapted too; ``None`` leaves the visual path out.
            task: ``caption`` or ``instruction`` gives gradients to that task's parameters only; ``None`` to all.
            has_image: (B,) booleans where only some rows have one; the others' features are read but count for nothing.
        """
        return self.llama.logits(self.hidden(tokens, visual, task, has_image))

    def hidden(
        self, tokens: Tensor, visual: Tensor | None = None, task: str | None = None, has_image: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, C) after the final norm; arguments as for :meth:`forward`."""
        return self.llama.hidden(tokens, hooks=self.bind(visual, task, has_image))

    def hidden_of_each(self, batches: Sequence[tuple]) -> list[Tensor]:
        """What :meth:`hidden` gives of each batch, its arguments, in one pass: every block is called once, with all.

        So both tasks of joint training (sec 4.2) go through the frozen model together, each batch with its own hooks,
        and so with gradients for its own task's parameters.
        """
        return self.llama.blocks_of_each(
            [self.llama.placed(tokens, hooks=self.bind(*about_it)) for tokens, *about_it in batches]
        )

    def bind(
        self,
        visual: Tensor | None = None,
        task: str | None = None,
        has_image: Tensor | None = None,
        keep: bool = False,
    ) -> list[BlockHooks]:
        """The adapter as hooks for ``self.llama``, bound to the images of one batch.

        With ``keep`` the prompts' keys and values, scales times biases, and the route through mixtures are computed
        once and serve every later step: for generation, which mixtures cannot do without.
        """
        train = trains("instruction", task, self.config.ownership)
        instruction: InstructionGroup = self.adapter["instruction"]
        prompts = None
        if visual is not None:
            prompts = self.visual_prompts(visual, trains("caption", task, self.config.ownership))
        modality = None if instruction.modality is None else used(instruction.modality, train)
        outer = OuterHooks(instruction.norm, train, modality, prompts)
        seen = self.seen(prompts, task, has_image)
        hooks = [
            AdapterHooks(tuning, train, seen[index], outer, self.config.prompt_projection, keep)
            for index, tuning in enumerate(instruction.layers)
        ]
        return [*hooks, outer]

    def seen(self, prompts: Tensor | None, task: str | None, has_image: Tensor | None) -> list[Seen | None]:
        """What each block is given of a batch's visual prompts; nothing, where they are tokens or there are none."""
        train = trains("caption", task, self.config.ownership)
        layers = len(self.llama.layers)
        if prompts is None or self.config.fusion == "tokens":
            return [None] * layers
        present = None if has_image is None else has_image[:, None, None].to(prompts.dtype)
        if self.config.fusion == "late":
            return [Seen(prompts if present is None else prompts * present, None)] * layers
        gates = [gate(train)[None] for gate in self.adapter["caption"].gates]
        if present is not None:
            gates = [gate * present[..., None] for gate in gates]
        return [Seen(prompts, gate) for gate in gates] + [None] * (layers - len(gates))

    def visual_prompts(self, visual: Tensor, train: bool = True) -> Tensor:
        """Features (B, S, F), or pixels where the encoder is adapted too, → visual prompts (B, P, C)."""
        if "caption" not in self.adapter:
            raise UserError("this adapter has no visual path (adapter.visual_layers is 0), so it cannot see an image")
        if self.config.mixture.vision_blocks:
            visual = self.encode(visual, train)
        if visual.dim() != 3 or visual.shape[-1] != self.feature_width:
            raise UserError(
                f"visual features have shape {tuple(visual.shape)}; this adapter expects "
                f"(batch, tokens, {self.feature_width})"
            )
        projector = self.adapter["caption"].projector
        prompts = projector(visual.to(projector.output.weight.dtype))
        return prompts if train else prompts.detach()

    def encode(self, pixels: Tensor, train: bool) -> Tensor:
        """Pixels (B, 3, H, W) → features (B, S, F) of the encoder with a mixture in front of each attention."""

        def adapter(mixture: MixtureOfModality) -> Callable[[Tensor], Tensor]:
            def adapt_states(x: Tensor) -> Tensor:  # (B, S, width), class token first
                first = x[:1] if self.config.mixture.routing == "first_of_batch" else x[:, :1]
                return mixture(x, mixture.route(first, train), train)

            return adapt_states

        if self.encoder is None:
            raise UserError("this adapter's mixtures stand in the image encoder: give it as adapt(…, encoder=…)")
        return self.encoder(pixels, [adapter(mixture) for mixture in self.adapter["caption"].mixtures])


def adapt(
    llama: Llama,
    config: AdapterConfig | dict | None = None,
    feature_width: int | None = None,
    encoder: VisionEncoder | None = None,
) -> AdaptedLlama:
    """Put an adapter on ``llama``; its logits are the frozen model's, exactly, until it is trained.

    Args:
        llama: the base model; its parameters are frozen.
        config: an :class:`AdapterConfig` or its values; default: the paper's.
        feature_width: F of the encoder's features (``VisionEncoder.width``); may also stand in a dict ``config``.
        encoder: the image encoder, where the adapter has parts in it (LaVIN).

    Raises:
        UserError: the config does not fit the model; all its problems are named.
    """
    if not isinstance(config, AdapterConfig):
        values = dict(config or {})
        feature_width = values.pop("feature_width", feature_width)
        config = AdapterConfig.from_dict(values)
    problems = config.problems(llama.config)
    if config.sees and not feature_width:
        problems.append("an adapter that sees images needs feature_width, the width of the encoder's features")
    if problems:
        raise UserError("; ".join(problems))
    return AdaptedLlama(llama, config, feature_width, encoder)
