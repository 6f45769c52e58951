"""Files that are whole or not there, whatever kills the process that writes them."""

import contextlib
import os
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Put ``content`` (text as UTF-8) into ``path``: under another name first, flushed to the disk, then renamed.

    A reader, and whoever comes after a crash, finds the old file or the new one, never a part of it.

    Raises:
        OSError: it cannot be written (a full disk); names ``path``, which stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed writers left half-way in ``folder`` and below; nobody may be writing there."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)
