"""What image files hold, by a hash of their bytes."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import track

from lav2.data.images import image_fault

SETTLED = 2 * 10**9  # nanoseconds: the times of files come in ticks, on some file systems of up to two seconds


def content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_hashes(paths: Iterable[Path], stamps: Path, on_bad: Callable[[Path, str], None]) -> dict[Path, str]:
    """The hash of each file's bytes. A file that cannot be read is named to ``on_bad(path, reason)`` and left out.

    The file ``stamps`` remembers each image's size, modification time, change time, inode and hash, and an image is
    not read again while the first four are what they were. That is safe: no program can set the change time, so an
    image that was overwritten is noticed even where its size and its modification time were kept. An image that changed
    less than two seconds before it was read is not remembered, as one more change might carry the same time.
    """
    known, hashes, unknown = _remembered(stamps), {}, []
    for path in sorted(set(paths)):
        try:
            *stamp, content = known.get(str(path), [None])
            if stamp == _stamp(os.stat(path)):
                hashes[path] = content
            else:
                unknown.append(path)
        except OSError as error:
            on_bad(path, image_fault(error))

    fresh = {}
    with ThreadPoolExecutor() as pool:  # reading and hashing leave Python's lock alone
        read = track(
            pool.map(_read, unknown), "hashing images", len(unknown), disable=not unknown or rank_zero_only.rank != 0
        )
        for path, result in zip(unknown, read, strict=True):
            if isinstance(result, OSError):
                on_bad(path, image_fault(result))
                continue
            hashes[path], stamp = result
            if stamp:
                fresh[str(path)] = [*stamp, hashes[path]]
    if fresh:
        with suppress(OSError):  # without it the images are read again: no reason to stop a run
            _replace(stamps, json.dumps(_remembered(stamps) | fresh))
    return hashes


def _read(path: Path) -> tuple[str, list[int] | None] | OSError:
    """The hash of a file and, unless the file has just changed, the stamp that stands for it."""
    started = time.time_ns()
    try:
        with open(path, "rb") as file:
            content = content_hash(file.read())
            status = os.fstat(file.fileno())
    except OSError as error:
        return error
    return content, _stamp(status) if status.st_ctime_ns < started - SETTLED else None


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remembered(stamps: Path) -> dict[str, list]:
    try:
        return json.loads(stamps.read_text())
    except (OSError, ValueError):
        return {}


def _replace(path: Path, text: str) -> None:
    """Write a file that is whole at every moment; of two processes that do so at once the later one prevails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
