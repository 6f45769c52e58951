"""LLaMA-Adapter V2: what is added to a frozen LLaMA, and the adapted model (V2 paper, sec 4).

The adapter is apart from the base: its parameters live in modules of their own and enter a block through
:class:`lav2.llama.BlockHooks`. So the base is frozen by construction, several adapters can share one, and leaving the
adapter out gives the base back exactly.
"""

from copy import copy

from torch import Tensor, nn

from lav2.adapter.config import AdapterConfig
from lav2.adapter.ownership import trains
from lav2.adapter.prompts import AdaptationPrompts, Gate, prompt_attention
from lav2.adapter.tuning import LinearTuning, NormTuning
from lav2.errors import UserError
from lav2.llama import BlockHooks, Llama
from lav2.llama.model import Attention, Block, RMSNorm
from lav2.vision.projector import LinearProjector, QueryProjector

LINEARS = {
    **dict.fromkeys(("wq", "wk", "wv", "wo"), "attention"),
    **dict.fromkeys(("w1", "w2", "w3"), "feed_forward"),
}


class LayerTuning(nn.Module):
    """What the instruction group adds to one block: bias tuning, norms and, in the last L blocks, prompts."""

    def __init__(self, block: Block, config: AdapterConfig, prompts: AdaptationPrompts | None):
        super().__init__()
        self.prompts = prompts
        tuned = LINEARS if config.bias or config.scale != "none" else {}
        self.linears = nn.ModuleDict(
            {
                name: LinearTuning(getattr(getattr(block, part), name), config.bias, config.scale)
                for name, part in tuned.items()
            }
        )
        names = () if config.norms == "none" else ("attention_norm", "ffn_norm")
        self.norms = nn.ModuleDict({name: NormTuning(getattr(block, name)) for name in names})


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


class CaptionGroup(nn.Module):
    """The visual projector and the gates of early fusion: trained on captions (sec 4.2, 4.3)."""

    def __init__(self, llama: Llama, config: AdapterConfig, feature_width: int):
        super().__init__()
        size, projector = llama.config.hidden_size, config.projector
        if projector.kind == "queries":
            self.projector = QueryProjector(
                feature_width, size, projector.width, projector.blocks, projector.heads, config.visual_length
            )
        else:
            self.projector = LinearProjector(feature_width, size, pooled=projector.kind == "linear_pooled")
        self.gates = nn.ModuleList(new_gate(llama, config) for _ in range(config.visual_layers))


def new_gate(llama: Llama, config: AdapterConfig) -> Gate:
    return Gate(llama.config.num_heads, config.gate == "per_head", config.gate_activation == "tanh")


class AdapterHooks(BlockHooks):
    """One block's share of the adapter, for one forward pass.

    Args:
        tuning: the instruction group's part.
        train_instruction: whether this pass gives that group gradients.
        visual: the visual prompts (B, P, C) and their gate's factors, in the first K blocks of a pass with images.
        prompt_projection: see :class:`AdapterConfig`.
        keep: compute the prompts' keys and values once and keep them; only for generation, where the same hooks serve
            every step and no gradient flows.
    """

    def __init__(
        self,
        tuning: LayerTuning,
        train_instruction: bool,
        visual: tuple[Tensor, Tensor] | None,
        prompt_projection: str,
        keep: bool,
    ):
        self.tuning, self.train_instruction, self.visual = tuning, train_instruction, visual
        self.prompt_projection, self.keep = prompt_projection, keep
        self.kept: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        if name not in self.tuning.norms:
            return norm(x)
        return self.tuning.norms[name](norm, x, self.train_instruction)

    def linear(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        if name not in self.tuning.linears:
            return linear(x)
        return self.tuning.linears[name](linear, x, self.train_instruction)

    def attend(self, attention: Attention, query: Tensor, output: Tensor) -> Tensor:
        prompts = self.kept or list(self.prompts(attention))
        if self.keep:
            self.kept = prompts
        for key, value, gate in prompts:
            output = output + prompt_attention(query, key, value, gate)
        return output

    def select(self, rows: Tensor) -> "AdapterHooks":
        chosen = copy(self)  # what was bound stays whole: its owner may use it again
        if self.visual is not None:
            chosen.visual = (of_rows(self.visual[0], rows), self.visual[1])
        if self.kept is not None:
            chosen.kept = [(of_rows(key, rows), of_rows(value, rows), gate) for key, value, gate in self.kept]
        return chosen

    def prompts(self, attention: Attention):
        """(key, value, gate) of each kind of prompt this block reads, through the block's own W_k and W_v.

        Prompts pass no attention norm and get no rotary position.
        """
        sources = [] if self.visual is None else [self.visual]
        if self.tuning.prompts is not None:
            train = self.train_instruction
            prompt = self.tuning.prompts.prompt
            sources.append(((prompt if train else prompt.detach())[None], self.tuning.prompts.gate(train)))
        for prompt, gate in sources:
            prompt = prompt.to(attention.wk.weight.dtype)
            if self.prompt_projection == "tuned":
                key, value = self.linear("wk", attention.wk, prompt), self.linear("wv", attention.wv, prompt)
            else:
                key, value = attention.wk(prompt), attention.wv(prompt)
            yield attention.heads(key, attention.num_kv_heads), attention.heads(value, attention.num_kv_heads), gate


def of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``rows`` of ``x`` (B, …); a batch of one serves all rows as it is."""
    return x if len(x) == 1 else x[rows]


class FinalNormHooks(BlockHooks):
    """The final norm's share of the adapter."""

    def __init__(self, tuning: NormTuning | None, train: bool):
        self.tuning, self.train = tuning, train

    def norm(self, name: str, norm: RMSNorm, x: Tensor) -> Tensor:
        return norm(x) if self.tuning is None else self.tuning(norm, x, self.train)


class AdaptedLlama(nn.Module):
    """A frozen LLaMA and its adapter: tokens (B, T), features (B, S, F) or None → logits (B, T, V).

    ``llama`` holds what is frozen, ``adapter`` all that trains: ``adapter.caption`` and ``adapter.instruction``.
    """

    def __init__(self, llama: Llama, config: AdapterConfig, feature_width: int | None):
        super().__init__()
        self.config = config
        self.feature_width = feature_width
        self.llama = llama.requires_grad_(False)
        groups = {"instruction": InstructionGroup(llama, config)}
        if config.visual_layers:
            groups["caption"] = CaptionGroup(llama, config, feature_width)
        self.adapter = nn.ModuleDict(groups)

    def forward(self, tokens: Tensor, visual: Tensor | None = None, task: str | None = None) -> Tensor:
        """Logits (B, T, V).

        Args:
            tokens: (B, T), padded at the right or not at all.
            visual: features (B, S, F) of one image a row from the frozen encoder; ``None`` leaves the visual path out.
            task: ``caption`` or ``instruction`` gives gradients to that task's parameters only; ``None`` to all.
        """
        return self.llama.logits(self.hidden(tokens, visual, task))

    def hidden(self, tokens: Tensor, visual: Tensor | None = None, task: str | None = None) -> Tensor:
        """Hidden states (B, T, C) after the final norm; arguments as for :meth:`forward`."""
        return self.llama.hidden(tokens, hooks=self.bind(visual, task))

    def bind(self, visual: Tensor | None = None, task: str | None = None, keep: bool = False) -> list[BlockHooks]:
        """The adapter as hooks for ``self.llama``, bound to the images of one batch.

        With ``keep`` the prompts' keys and values are computed once and serve every later step (generation only).
        """
        train_instruction, train_caption = trains("instruction", task), trains("caption", task)
        instruction: InstructionGroup = self.adapter["instruction"]
        prompts, gates = None, []
        if visual is not None:
            prompts, gates = self.visual_prompts(visual, train_caption), self.adapter["caption"].gates
        return [
            AdapterHooks(
                tuning,
                train_instruction,
                (prompts, gates[index](train_caption)) if index < len(gates) else None,
                self.config.prompt_projection,
                keep,
            )
            for index, tuning in enumerate(instruction.layers)
        ] + [FinalNormHooks(instruction.norm, train_instruction)]

    def visual_prompts(self, visual: Tensor, train: bool = True) -> Tensor:
        """Features (B, S, F) → visual prompts (B, P, C)."""
        if "caption" not in self.adapter:
            raise UserError("this adapter has no visual path (adapter.visual_layers is 0), so it cannot see an image")
        if visual.dim() != 3 or visual.shape[-1] != self.feature_width:
            raise UserError(
                f"visual features have shape {tuple(visual.shape)}; this adapter expects "
                f"(batch, tokens, {self.feature_width})"
            )
        projector = self.adapter["caption"].projector
        prompts = projector(visual.to(projector.output.weight.dtype))
        return prompts if train else prompts.detach()


def adapt(llama: Llama, config: AdapterConfig | dict | None = None, feature_width: int | None = None) -> AdaptedLlama:
    """Put an adapter on ``llama``; its logits are the frozen model's, exactly, until it is trained.

    Args:
        llama: the base model; its parameters are frozen.
        config: an :class:`AdapterConfig` or its values; default: the paper's.
        feature_width: F of the encoder's features (``VisionEncoder.width``); may also stand in a dict ``config``.

    Raises:
        UserError: the config does not fit the model; all its problems are named.
    """
    if not isinstance(config, AdapterConfig):
        values = dict(config or {})
        feature_width = values.pop("feature_width", feature_width)
        config = AdapterConfig.from_dict(values)
    problems = config.problems(llama.config)
    if config.visual_layers and not feature_width:
        problems.append("an adapter that sees images needs feature_width, the width of the encoder's features")
    if problems:
        raise UserError("; ".join(problems))
    return AdaptedLlama(llama, config, feature_width)
