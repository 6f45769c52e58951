"""Image features on disk: a folder of files that are whole or not there, whoever else writes and whatever dies."""

import fcntl
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lav2.errors import UserError

SUFFIX, PART = ".safetensors", ".part"


class Shards:
    """The features in one folder by the hash of the image they are of.

    A shard is a safetensors file of ``features`` (images, tokens, width); ``contents`` (images, 32), the hash of each
    image; ``checksums`` (images,), CRC-32 of an image's hash and features; and ``broken`` (broken images, 32), the
    hashes of images that cannot be decoded. It is written under another name, synced and renamed, so neither a killed
    process nor a power cut leaves half of one under its own name; one that is cut short all the same is removed.

    Attributes:
        rows: hash → (file name, row).
        broken: hashes of broken images.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, tuple[str, int]] = {}
        self.broken: set[str] = set()
        self._read: set[str] = set()
        self.refresh()

    def __contains__(self, content: str) -> bool:
        return content in self.rows or content in self.broken

    def refresh(self) -> None:
        """Take in the shards that have been written since, by this process or another."""
        for path in sorted(self.folder.glob("*" + SUFFIX)):
            if path.name not in self._read:
                try:
                    with safe_open(path, "pt") as shard:
                        contents, broken = shard.get_tensor("contents"), shard.get_tensor("broken")
                except (SafetensorError, OSError):  # torn, or removed by another process for that
                    with suppress(OSError):
                        path.unlink()
                    continue
                self._read.add(path.name)
                self.rows |= {content: (path.name, row) for row, content in enumerate(_to_hex(contents))}
                self.broken.update(_to_hex(broken))

    def claim(self, contents: list[str]) -> "Claim | None":
        """The right to compute and write the features of ``contents``; None while another process has it.

        Raises:
            UserError: the folder cannot be written, or its file system has no locks.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return Claim.take(self.folder / (sha256("".join(contents).encode()).hexdigest()[:32] + SUFFIX))
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, claim: "Claim", features: dict[str, Tensor], broken: list[str]) -> None:
        """Write the features by hash, and what is broken, as the claimed shard.

        Raises:
            UserError: the disk takes no more.
        """
        rows = list(features.values())
        shard = {
            "features": torch.stack(rows) if rows else torch.empty(0),
            "contents": _from_hex(features),
            "checksums": torch.tensor([_checksum(*item) for item in features.items()], dtype=torch.int64),
            "broken": _from_hex(broken),
        }
        try:
            claim.write(save(shard))
        except OSError as error:
            raise self._unwritable(error) from None
        self.refresh()

    def sweep(self) -> None:
        """Remove what killed processes have left."""
        for part in self.folder.glob("*" + PART):
            if claim := Claim.take(part.with_suffix(SUFFIX)):
                claim.release()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write image features to {self.folder}: {error.strerror}; set data.cache_dir to another disk, or "
            "free some space and start again: what is written stays"
        )


class ShardReader:
    """Rows of the shards in a folder, memory-mapped, each checked against its checksum when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, tuple] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}  # every process maps the files by itself

    def read(self, content: str, name: str, row: int) -> Tensor:
        """The features (tokens, width) in row ``row`` of the file ``name``, which are of the image ``content``.

        Raises:
            UserError: they are damaged or gone.
        """
        path = self.folder / name
        if name not in self._open:
            try:
                shard = safe_open(path, "pt")
                self._open[name] = shard.get_slice("features"), shard.get_tensor("checksums").tolist()
            except (SafetensorError, OSError):
                raise UserError(
                    f"{path}, image features, is gone or damaged: start again, they are computed anew"
                ) from None
        features, checksums = self._open[name]
        values = features[row]
        if _checksum(content, values) != checksums[row]:
            with suppress(OSError):
                path.unlink()
            raise UserError(
                f"image features in {path} were damaged and are removed: start again, they are computed anew"
            )
        return values.clone()


class Claim:
    """The sole right to write a shard that is not there yet.

    It is a lock on the file that will be renamed to the shard. The system lifts it when the process ends, however that
    comes about, and child processes do not inherit it. Nobody waits for one, so there is no deadlock.
    """

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_suffix(PART)
        self.file = open(self.part, "ab", buffering=0)  # noqa: SIM115  (left as it is: it may be another's)

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """The claim on the shard ``path``; None if another process has it or has already written the shard."""
        claim = cls(path)
        try:
            fcntl.lockf(claim.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            claim.file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(claim.file.fileno()), os.stat(claim.part)):
                if not path.exists():
                    return claim
                claim.part.unlink()
        claim.file.close()  # what was locked is the shard by now, or has been removed
        return None

    def write(self, content: bytes) -> None:
        self.file.truncate(0)
        rest = memoryview(content)
        while rest:
            rest = rest[self.file.write(rest) :]
        os.fsync(self.file.fileno())
        self.part.rename(self.path)
        self.file.close()

    def release(self) -> None:
        """Give up without having written."""
        self.part.unlink(missing_ok=True)
        self.file.close()


def _checksum(content: str, features: Tensor) -> int:
    return zlib.crc32(features.numpy(), zlib.crc32(bytes.fromhex(content)))


def _from_hex(contents: Iterable[str]) -> Tensor:
    rows = [list(bytes.fromhex(content)) for content in contents]
    return torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), 32)


def _to_hex(contents: Tensor) -> list[str]:
    return [row.tobytes().hex() for row in contents.numpy()]
