"""Durable files: atomic write (temporary file, fsync, rename) and fsync of a folder.

Content goes in; after a crash at any point a reader sees all of it or nothing.
"""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file atomically: a reader sees all of it or nothing, also after a crash.

    Args:
        path: the file.
        content: all of it.
        mode: permission bits, set before anything is written; by default those of the umask.

    Raises:
        OSError: from the file system; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, which makes renames inside it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
