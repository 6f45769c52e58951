"""The files a model is stored in: tensors by safetensors or ``torch.save``, and JSON. Nothing in them is executed."""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lav2.errors import UserError
from lav2.llama.config import LlamaConfig

OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save put first before version 1.6


class SafetensorsFile:
    """The tensors in a safetensors file, memory-mapped one by one.

    Raises:
        UserError: the file cannot be read; says what it is instead where its first bytes tell.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        except (SafetensorError, OSError) as error:
            raise UserError(damage(path, error)) from None

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)


class TorchFile:
    """The tensors in a ``torch.save`` file, memory-mapped.

    All of a file's tensors share one map, whose pages stay in memory once they are read. So the map is let go and made
    anew each time a 32nd of the file has been handed out: making it reads a few kilobytes.

    Raises:
        UserError: the file cannot be read, or holds something else than named tensors; says what it is instead where
            its first bytes tell.
    """

    def __init__(self, path: Path):
        self.path = path
        self.map()
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        if self.handed_out > os.path.getsize(self.path) / 32:
            self.map()
        tensor = self.tensors[name]
        self.handed_out += tensor.nbytes
        return tensor

    def map(self) -> None:
        self.handed_out = 0
        try:
            self.tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{self.path} is refused: it is damaged or holds more than tensors, and loading that could run code; "
                "get the weights as safetensors"
            ) from None
        except Exception as error:  # a damaged archive can raise anything
            raise UserError(damage(self.path, error)) from None
        if not isinstance(self.tensors, dict) or not all(isinstance(t, Tensor) for t in self.tensors.values()):
            raise UserError(f"{self.path} holds no dictionary of tensors; it must be a model's state dict")


def damage(path: Path, error: Exception) -> str:
    """What is wrong with the file at ``path``, which gave ``error`` when it was read."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        return f"{path} is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page saved under that name, not weights: download it again"
    if start.startswith(OLD_FORMAT):
        return f"{path} is in torch's old format, which cannot be memory-mapped: torch.load and torch.save it once"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{path} is damaged, cut off or no file of weights ({reason}); copy or download it again"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Raises:
        UserError: it holds none.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no JSON object; it must describe a LLaMA")
    return stored


def shape_settings(stored: Mapping[str, Any], keys: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The arguments of :class:`LlamaConfig` in what ``path`` stores, by the names that ``keys`` gives them there.

    Raises:
        UserError: a setting is missing or of a wrong type (named in the message).
    """
    shape = {field.name: field for field in fields(LlamaConfig)}
    missing = [key for key, ours in keys.items() if key not in stored and shape[ours].default is MISSING]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}, which every LLaMA's {path.name} has")
    for key, ours in keys.items():
        kind = shape[ours].type
        if key in stored and type(stored[key]) not in ((int, float) if kind is float else (kind,)):
            raise UserError(f"{path}: {key} is {stored[key]!r}; expected {kind.__name__}")
    return {ours: stored[key] for key, ours in keys.items() if key in stored}
