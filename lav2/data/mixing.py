"""One task a step, instead of all tasks in every step: alternating, or in a ratio."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from lav2.data.loader import ResumableLoader


def task_order(ratio: Mapping[str, int]) -> list[str]:
    """The tasks of one cycle's steps, each ``ratio[task]`` times and spread evenly: {a: 3, b: 2} gives a b a b a."""
    turns = [((2 * turn + 1) / count, task) for task, count in ratio.items() for turn in range(count)]
    return [task for _, task in sorted(turns, key=lambda turn: turn[0])]


class TaskCycle:
    """An endless stream of ``{task: batch}`` with one task a step, passed on in portions of one epoch's length.

    An epoch is so many whole cycles that every task's data are seen at least once; what is seen sooner starts over.
    Like :class:`ResumableLoader`, ``iter()`` goes on where the stream stands, and no step is lost or repeated.

    Args:
        loaders: a stream of batches for each task.
        ratio: for each task its steps in one cycle.
    """

    def __init__(self, loaders: Mapping[str, ResumableLoader], ratio: Mapping[str, int]):
        self.loaders, self.done = loaders, 0
        self.order = task_order({task: ratio[task] for task in loaders})
        cycles = max(-(-len(loader) // ratio[task]) for task, loader in loaders.items())
        self.length = cycles * len(self.order)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        streams = {task: endless(loader) for task, loader in self.loaders.items()}
        for _ in range(self.length):
            task = self.order[self.done % len(self.order)]
            batch = next(streams[task])
            self.done += 1
            yield {task: batch}

    def state_dict(self) -> dict:
        """The position: steps done, and every task's own position."""
        return {"done": self.done, "tasks": {task: loader.state_dict() for task, loader in self.loaders.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved position.

        Raises:
            UserError: a task's data or batch size were others when the position was saved.
        """
        for task, loader in self.loaders.items():
            loader.load_state_dict(state["tasks"][task])
        self.done = state["done"]


def endless(loader: ResumableLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader
