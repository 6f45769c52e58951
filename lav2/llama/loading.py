"""Weights on disk → a frozen :class:`Llama`."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor, nn

from lav2.errors import UserError
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.config import LlamaConfig
from lav2.llama.hugging_face import HuggingFaceCheckpoint
from lav2.llama.hugging_face_config import read_config as read_hugging_face_config
from lav2.llama.meta import MetaCheckpoint
from lav2.llama.model import Llama
from lav2.llama.quantization import hold_int8, is_quantized, quantized

QUICK = 100_000_000  # bytes: below it no progress bar is shown


def load_llama(path: str | Path, dtype: torch.dtype = torch.float32, quantize: str | None = None) -> Llama:
    """The frozen LLaMA stored at ``path``, in ``dtype`` and evaluation mode.

    Tensors are read, checked and cast one by one, so that little more memory is used than the model takes.

    Args:
        path: a folder of Meta's (``params.json``) or of Hugging Face's (``config.json``), or a ``.gguf`` file.
        dtype: of the loaded weights.
        quantize: round the blocks' linear layers to one of :data:`lav2.llama.quantization.QUANTIZATIONS`.

    Raises:
        UserError: as :func:`open_checkpoint`, or a tensor holds values that are not finite (names file and tensor).
    """
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = Llama(checkpoint.config)
    # made before anything is read: what is freed in between leaves no gaps, and blank tensors take no memory yet
    kept = [name for name in checkpoint if not (quantize and is_quantized(name))]
    tensors = {name: torch.empty(checkpoint.shapes[name], dtype=dtype) for name in kept}
    rows = {}
    for name in with_progress(checkpoint, dtype):
        tensor = tensors[name] if name in tensors else torch.empty(checkpoint.shapes[name], dtype=dtype)
        read_tensor(checkpoint, name, tensor)
        if quantize or dtype == torch.float16:
            rows[name] = first_row(checkpoint[name])
        tensors[name] = tensor if name in tensors else quantized(name, tensor, quantize)
    if quantize == "int8":
        hold_int8(model)
    model.load_state_dict(tensors, assign=True)
    model.fingerprint = digest(rows) if rows else None
    return model.requires_grad_(False).eval()


def read_tensor(checkpoint: Checkpoint, name: str, into: Tensor, rows: slice = slice(None)) -> None:
    """Read, check and cast ``rows`` of a stored tensor; its own memory is free again when this returns.

    Raises:
        UserError: it holds values that are not finite (names the file).
    """
    stored = checkpoint[name][rows]
    if not is_finite(stored):
        file = next((file for file, piece in checkpoint.pieces(name) if not is_finite(piece)), checkpoint.path)
        raise UserError(f"{file} is damaged: {name} holds values that are not finite; copy or download it again")
    into.copy_(stored)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The LLaMA at ``path`` (as for :func:`load_llama`) with all its tensors in place and none of them read.

    Raises:
        UserError: a file is missing or damaged, the architecture is another one, or a tensor is missing, unexpected or
            misshapen (named in the message).
    """
    path = Path(path)
    if path.suffix == ".gguf":
        from lav2.llama.gguf import GgufCheckpoint

        checkpoint = GgufCheckpoint(path)
    else:
        checkpoint = MetaCheckpoint(path) if is_meta_folder(path) else HuggingFaceCheckpoint(path)
    with torch.device("meta"):
        expected = dict(Llama(checkpoint.config).named_parameters())
    for name in sorted(expected.keys() & checkpoint.keys()):
        if checkpoint.shapes[name] != expected[name].shape:
            raise UserError(
                f"{checkpoint.pieces(name)[0][0]}: {name} has shape {tuple(checkpoint.shapes[name])}, expected "
                f"{tuple(expected[name].shape)}: the weights and the config are of different models"
            )
    stored = {name: torch.empty(shape, device="meta") for name, shape in checkpoint.shapes.items()}
    check_tensors(stored, {name: parameter.shape for name, parameter in expected.items()}, path)
    return checkpoint


def read_config(path: str | Path) -> LlamaConfig:
    """The shape of the LLaMA at ``path``, without a look at its weights where the format allows it.

    Raises:
        UserError: nothing is there, or a model that :class:`Llama` does not compute.
    """
    path = Path(path)
    if path.suffix == ".gguf" or is_meta_folder(path):
        return open_checkpoint(path).config
    return read_hugging_face_config(path)


def is_meta_folder(path: Path) -> bool:
    return (path / "params.json").is_file() and not (path / "config.json").is_file()


def with_progress(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[str]:
    """The names in ``checkpoint`` under a progress bar, the largest tensor first.

    A stored tensor and its copy are in memory together: the largest had better be while the model is still small.
    """
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in checkpoint.shapes.items()}
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    quiet = sum(sizes.values()) < QUICK or os.environ.get("LOCAL_RANK", "0") != "0"
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(f"reading {checkpoint.path.name}", total=sum(sizes.values()))
        for name in sorted(sizes, key=sizes.get, reverse=True):
            yield name
            progress.advance(task, sizes[name])


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # of all ways the quickest, and without a copy; an empty share of a tensor has no extremes
    return not tensor.numel() or all(extreme.isfinite() for extreme in tensor.aminmax())


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell these weights from others of the same shape, the same in every dtype down to bf16 and
    from every format that holds these very weights.

    Reads the final norm and one row of each layer's matrices: enough to tell models apart, cheap at any size. A LLaMA
    that no longer holds the weights as they were stored brings it along.
    """
    if (stored := getattr(model, "fingerprint", None)) is not None:
        return stored
    return digest({name: first_row(parameter) for name, parameter in model.named_parameters()})


def stored_fingerprint(checkpoint: Checkpoint) -> str:
    """The :func:`fingerprint` that the model in ``checkpoint`` will have."""
    return digest({name: first_row(checkpoint[name]) for name in checkpoint})


def first_row(tensor: Tensor) -> bytes:
    """What a fingerprint reads of one tensor."""
    row = tensor if tensor.dim() == 1 else tensor[0]
    return row.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


def digest(rows: dict[str, bytes]) -> str:
    """The fingerprint of a model by its :func:`first_row` of every tensor."""
    return hashlib.sha256(b"".join(name.encode() + row for name, row in sorted(rows.items()))).hexdigest()[:16]


def check_tensors(found: dict[str, Tensor], expected: dict[str, torch.Size], where: str | Path) -> None:
    """Refuse missing, unexpected and misshapen tensors, naming the first of each kind.

    Raises:
        UserError: the tensors in ``found`` are not exactly those ``expected``.
    """
    problems = []
    for kind, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {kind} (first: {min(names)})")
    for name in sorted(found.keys() & expected.keys()):
        if found[name].shape != expected[name]:
            problems.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name])}")
            break
    if problems:
        raise UserError(f"the tensors in {where} do not fit this model: {'; '.join(problems)}")
