"""Meta's release folder: ``params.json`` and ``consolidated.*.pth``, one file for each model-parallel rank."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.config import LlamaConfig, RopeScaling
from lav2.llama.files import TorchFile, read_json, shape_settings

# params.json's key → ours
PARAMS = {
    "dim": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "vocab_size": "vocab_size",
    "norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
# what else it may say: the feed-forward size is read from the weights, the others are no part of the model
OTHER_PARAMS = {"use_scaled_rope", "multiple_of", "ffn_dim_multiplier", "max_batch_size", "max_seq_len"}
EMBEDDINGS, OUTPUT, NORM = "tok_embeddings.weight", "output.weight", "norm.weight"
QUERY, GATE = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"


class MetaCheckpoint(Checkpoint):
    """The LLaMA in a folder as Meta released it: LLaMA 1, 2, 3, 3.1 and 3.2 (text).

    The ranks' shards are joined as a tensor is read. ``output.weight`` is left out where it repeats the embeddings.

    Raises:
        UserError: a file is missing or damaged, the shards do not belong together, or another model is described.
    """

    def __init__(self, path: Path):
        self.path = path
        params = read_params(path / "params.json")
        self.hidden_size = params["dim"]
        self.shards = [TorchFile(file) for file in shard_files(path)]
        self.check_shards()
        self.shapes = {
            name: self.joined_shape(name, shape)
            for name, shape in self.shards[0].shapes.items()
            if not name.endswith("rope.freqs")  # LLaMA 1 and 2 store what the config says
        }
        tied = self.repeats_embeddings()
        if tied:
            self.shapes.pop(OUTPUT, None)
        if params.get("vocab_size", -1) == -1:
            params["vocab_size"] = self.shapes[EMBEDDINGS][0]
        params.setdefault("n_kv_heads", params["n_heads"])
        self.config = LlamaConfig(
            **shape_settings(params, PARAMS, path / "params.json"),
            intermediate_size=self.shapes[GATE][0],
            max_length=longest_sequence(params),
            tie_embeddings=tied,
            # of LLaMA 3.1; of 3.2, whose published sizes without images are those with tied embeddings
            rope_scaling=RopeScaling(32.0 if tied else 8.0, 1.0, 4.0, 8192) if params.get("use_scaled_rope") else None,
        )

    def __getitem__(self, name: str) -> Tensor:
        pieces = [piece for _, piece in self.pieces(name)]
        dimension = self.split_dimension(name, pieces[0].shape)
        return pieces[0] if len(pieces) == 1 or dimension is None else torch.cat(pieces, dimension)

    def pieces(self, name: str) -> list[tuple[Path, Tensor]]:
        return [(shard.path, shard[name]) for shard in self.shards]

    def split_dimension(self, name: str, shape: torch.Size) -> int | None:
        """Along which dimension the ranks share a tensor, of which ``shape`` is one piece; None where each has all."""
        if len(shape) == 1:
            return None
        if name == EMBEDDINGS:  # LLaMA 1 and 2 split columns, LLaMA 3 the vocabulary
            return 1 if shape[1] < self.hidden_size else 0
        return 1 if name.endswith(("wo.weight", "w2.weight")) else 0

    def joined_shape(self, name: str, shape: torch.Size) -> torch.Size:
        dimension = self.split_dimension(name, shape)
        return torch.Size(size * len(self.shards) if d == dimension else size for d, size in enumerate(shape))

    def check_shards(self) -> None:
        """Refuse shards that do not make one model.

        Raises:
            UserError: names the file that is missing or does not fit the first.
        """
        first, count = self.shards[0], len(self.shards)
        for name in (EMBEDDINGS, QUERY, GATE, NORM):
            if len(first.shapes.get(name, ())) != (1 if name == NORM else 2):
                raise UserError(f"{first.path} holds no {name}, or not as a LLaMA of Meta's does")
        needed, rest = divmod(self.hidden_size, first.shapes[QUERY][0] or 1)
        if not rest and count < needed:
            raise UserError(f"{shard_path(self.path, count)} is missing: this LLaMA is stored in {needed} such files")
        if not rest and count > needed:
            raise UserError(
                f"{self.path} holds {count} shards, but {first.path.name} is one of {needed}: "
                "they are of different models"
            )
        for shard in self.shards[1:]:
            for name in sorted(first.shapes.keys() | shard.shapes.keys()):
                here, there = shard.shapes.get(name), first.shapes.get(name)
                if here != there:
                    raise UserError(
                        f"{shard.path}: {name} has shape {here and tuple(here)}, in {first.path.name} "
                        f"{there and tuple(there)}: they are shards of different models"
                    )
            norm = first[NORM].float()
            if (shard[NORM].float() - norm).norm() > 0.05 * norm.norm():
                raise UserError(
                    f"{shard.path}: {NORM} is not the one in {first.path.name}, though every shard stores it whole: "
                    "they are shards of different models"
                )

    def repeats_embeddings(self) -> bool:
        """Whether the output head is the embeddings; a head in several shards is taken for one of its own."""
        if OUTPUT not in self.shapes or len(self.shards) > 1:
            return OUTPUT not in self.shapes
        embeddings, output = self[EMBEDDINGS], self[OUTPUT]
        return torch.equal(output[:1], embeddings[:1]) and torch.equal(output, embeddings)


def read_params(path: Path) -> dict[str, Any]:
    """What ``params.json`` says.

    Raises:
        UserError: it is damaged, lacks a size, or tells of something that :class:`~lav2.llama.Llama` does not compute.
    """
    params = read_json(path)
    for key, value in params.items():
        if key not in PARAMS.keys() | OTHER_PARAMS and value is not None:
            raise UserError(f"{path}: {key} is {value!r}; a model with that is not supported, only LLaMA 1 to 3.2")
    params = {key: value for key, value in params.items() if value is not None}
    shape_settings({"vocab_size": -1, "n_kv_heads": 1} | params, PARAMS, path)  # before a size is used
    return params


def shard_path(folder: Path, rank: int) -> Path:
    return folder / f"consolidated.{rank:02d}.pth"


def shard_files(folder: Path) -> list[Path]:
    """The folder's shards in the order of their ranks.

    Raises:
        UserError: there are none, or one is missing between others.
    """
    names = [re.fullmatch(r"consolidated\.(\d\d)\.pth", file.name) for file in folder.iterdir()]
    ranks = sorted(int(name[1]) for name in names if name)
    if not ranks:
        raise UserError(
            f"no weights at {shard_path(folder, 0)}: Meta's folder holds params.json and consolidated.*.pth"
        )
    for rank in range(ranks[-1]):
        if rank not in ranks:
            raise UserError(f"{shard_path(folder, rank)} is missing: the shards go up to {ranks[-1]:02d}")
    return [shard_path(folder, rank) for rank in ranks]


def longest_sequence(params: dict[str, Any]) -> int:
    """The tokens that the model was trained to read, which ``params.json`` does not say: by what tells the releases
    apart.

    A LLaMA 2 whose ``norm_eps`` was published as 1e-6, like LLaMA 1's, is taken for one of 2048.
    """
    if params.get("use_scaled_rope"):
        return 131072  # LLaMA 3.1 and 3.2
    theta = params.get("rope_theta", 10000.0)
    if theta > 10000.0:
        return 16384 if theta == 1e6 else 8192  # Code Llama; LLaMA 3
    first = params["norm_eps"] == 1e-6 or (params["dim"] == 8192 and params["n_kv_heads"] == params["n_heads"])
    return 2048 if first else 4096
