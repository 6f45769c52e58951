"""What a step allocates, counted as torch does it: on fake tensors a 65B model's step takes no memory and seconds."""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lav2.adapter import AdaptedLlama, AdapterConfig
from lav2.llama import Llama, LlamaConfig
from lav2.training.loss import FrozenHeadLoss
from lav2.training.recomputation import recompute_blocks


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that come to be while it is on, now and at most.

    Args:
        present: tensors whose memory was there before.
    """

    def __init__(self, present: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {tensor.untyped_storage()._cdata for tensor in present}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def step_memory(
    shape: LlamaConfig,
    adapter: AdapterConfig,
    feature_width: int | None,
    dtype: torch.dtype,
    batches: Mapping[str, tuple[int, int, int]],
    recompute: bool,
) -> tuple[int, int, int]:
    """What one joint step keeps and allocates besides weights and gradients, without any memory for it.

    Two layers of a kind are computed at most: the second keeps what all later ones keep.

    Args:
        batches: for each task the rows of a batch, their tokens, all of them labelled, and image tokens, 0 without.
        recompute: with activation checkpointing.

    Returns:
        Bytes that the passes through the model keep for the backward pass, and what comes on top of them at the worst
        moment of the losses, which are computed with their gradients, and of the backward pass.
    """
    counts = layer_kinds(shape, adapter)
    few = [min(count, 2) for count in counts]
    with FakeTensorMode():
        model = AdaptedLlama(
            Llama(replace(shape, num_layers=sum(few))),
            replace(adapter, visual_layers=few[0], prompt_layers=few[2]),
            feature_width,
        ).train()
        llama = model.llama
        llama.load_state_dict({name: value.to(dtype) for name, value in llama.state_dict().items()}, assign=True)
        if recompute:
            recompute_blocks(llama)
        trained = list(model.adapter.parameters())
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)  # Lightning clears gradients after the forward pass
        allocations = Allocations([*model.parameters(), *(parameter.grad for parameter in trained)])
        by_layer = watch_layers(llama, allocations)
        with allocations:
            losses, kept = [], 0
            for task, (rows, length, image_tokens) in batches.items():
                before = allocations.now
                tokens = torch.zeros(rows, length, dtype=torch.int64)
                visual = torch.zeros(rows, image_tokens, feature_width) if image_tokens else None
                turns = llama.turns(torch.arange(length))
                hidden = llama.blocks(tokens, turns, None, hooks=model.bind(visual, task))
                kept += allocations.now - before
                labelled = hidden.flatten(0, 1)[torch.arange(rows * length)]
                losses.append(FrozenHeadLoss.apply(labelled, tokens.flatten(), llama.head, torch.ones(())))
                del hidden, labelled, turns, tokens, visual
            before_backward, allocations.peak = allocations.peak, allocations.now
            torch.stack(losses).sum().backward()
    last = [sum(few[: kind + 1]) - 1 for kind in range(3)]
    left_out = sum((counts[kind] - few[kind]) * by_layer[last[kind]] for kind in range(3) if few[kind])
    return kept + left_out, before_backward - kept, allocations.peak - kept


def layer_kinds(shape: LlamaConfig, adapter: AdapterConfig) -> tuple[int, int, int]:
    """How many layers read visual prompts of their own, no prompts, adaptation prompts; they stand in this order."""
    first = adapter.visual_layers if adapter.fusion == "early" else 0
    last = adapter.last_layers(shape)
    return first, shape.num_layers - first - last, last


def watch_layers(llama: Llama, allocations: Allocations) -> list[int]:
    """For each layer the bytes that its forward passes leave allocated, once they have been run: what is there when the
    next layer, or the final norm, begins, less what was there when it began itself."""
    left = [0] * len(llama.layers)

    def enter(index: int, *_) -> None:
        if index < len(left):
            left[index] -= allocations.now
        if index > 0:
            left[index - 1] += allocations.now

    for index, module in enumerate([*llama.layers, llama.norm]):
        module.register_forward_pre_hook(partial(enter, index))
    return left
