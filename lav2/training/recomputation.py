"""Activation checkpointing: a block's input is kept for the backward pass, the rest of it is computed again."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from lav2.llama import Llama


def recompute_blocks(llama: Llama) -> None:
    """Let every block keep its input alone, for one more forward pass of time.

    Losses and gradients stay the same. The block's hooks carry the task as an argument, so what is computed again takes
    gradients for the same task. Without gradients nothing changes.
    """
    for block in llama.layers:
        block.transform = partial(checkpoint, block.transform, use_reentrant=False)
