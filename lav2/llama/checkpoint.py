"""What every format of stored weights looks like to the rest of the package."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lav2.llama.config import LlamaConfig


class Checkpoint(Mapping[str, Tensor]):
    """A LLaMA on disk: tensors by the names of :class:`~lav2.llama.Llama`, each read when it is asked for.

    ``checkpoint[name]`` has the file's dtype, and its query and key rows stand in Meta's rotary pairs. Where it can be
    it is a view of the memory-mapped file, so that a slice of it (``checkpoint[name][rows]``, a rank's share) reads
    that slice alone, and its memory is free again when the tensor is dropped. The file must not change while it lives.

    Attributes:
        path: the folder or file.
        config: the model's shape.
        shapes: every tensor's shape, known without reading the tensors.
    """

    path: Path
    config: LlamaConfig
    shapes: dict[str, torch.Size]

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def pieces(self, name: str) -> list[tuple[Path, Tensor]]:
        """The files that hold the tensor ``name``, each with its piece of it."""
        return [(self.path, self[name])]
