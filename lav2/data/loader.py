"""Batches in an order that depends on nothing but (seed, epoch), so that a run can stop and resume anywhere."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lav2.errors import UserError

POOL = 50  # batches that are sorted by length together: more saves padding, fewer mixes better


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch as arrays of indices: every sample once, samples of similar length together.

    Shuffle, cut into pools of ``POOL`` batches, sort each pool by length, shuffle the batches. What is left over after
    the last full batch is a random handful (not the longest samples) and comes last, as a shorter batch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    full = len(order) - len(order) % batch_size
    batches = []
    for start in range(0, full, batch_size * POOL):
        pool = order[start : min(start + batch_size * POOL, full)]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(pool, len(pool) // batch_size)
    batches = [batches[index] for index in rng.permutation(len(batches))]
    return batches + ([order[full:]] if full < len(order) else [])


class ResumableLoader:
    """An endless stream of batches, passed on in portions of one epoch's length.

    The stream runs through epoch 0, 1, 2 …, each in the order of :func:`epoch_batches`. ``iter()`` goes on where the
    stream stands and yields ``len(self)`` batches; so a loader that is re-iterated, whether it was exhausted or left
    half-way (Lightning does both), never repeats or loses a batch and reshuffles at every epoch. The position counts
    the batches that the main process has yielded, whatever workers have read ahead; use one iterator at a time.

    No global random state is read. Over several ranks each step takes ``batch_size * world_size`` samples of similar
    length, the same as one rank would with that batch size, and deals them out; the ragged rest of an epoch is left
    over, ``left_over`` samples, different ones every epoch.

    Args:
        dataset: has ``lengths``, the samples' lengths in tokens, besides items.
        collate: list of items → batch.
        batch_size: samples a batch and rank.
        drop_last: with one rank, leave the last short batch of an epoch out.
        num_workers: processes that read ahead; 0 reads in the main process.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        drop_last: bool = False,
    ):
        self.dataset, self.collate, self.num_workers = dataset, collate, num_workers
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch = self.done = 0
        self.step = batch_size * world_size
        rest = len(dataset) % self.step
        keep_rest = rest and world_size == 1 and not drop_last
        self.left_over = 0 if keep_rest else rest
        self.length = len(dataset) // self.step + int(bool(keep_rest))
        if self.length == 0:
            raise UserError(
                f"{len(dataset)} training samples are fewer than one step of {world_size} x {batch_size}: "
                "give more data or a smaller batch size"
            )

    def __len__(self) -> int:
        return self.length

    def _batches(self, epoch: int) -> list[list[int]]:
        batches = epoch_batches(self.dataset.lengths, self.step, self.seed, epoch)
        return [batch[self.rank :: self.world_size].tolist() for batch in batches[: self.length]]

    def __iter__(self) -> Iterator:
        self._turn_over()
        batches = self._batches(self.epoch)[self.done :]
        if self.done:
            batches += self._batches(self.epoch + 1)[: self.done]
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # else the loader draws from the global one
        )
        for batch in loader:
            self._turn_over()
            self.done += 1
            yield batch

    def _turn_over(self) -> None:
        if self.done == self.length:
            self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position in the stream: ``done`` batches of epoch ``epoch``; the same on every rank."""
        return {"epoch": self.epoch, "done": self.done, "samples": len(self.dataset), "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position, which any number of ranks may have reached.

        Raises:
            UserError: the position was saved with another number of samples, in all or in a step, and means nothing
                here.
        """
        if (state["samples"], state["step"]) != (len(self.dataset), self.step):
            raise UserError(
                f"the checkpoint was made with {state['samples']:,} samples, {state['step']} a step, now there are "
                f"{len(self.dataset):,}, {self.step} a step: resume with the same data and the same batch size times "
                "devices, or start a new run from the adapter"
            )
        self.epoch, self.done = state["epoch"], min(state["done"], self.length)  # one rank alone takes a ragged rest
