"""Writes the files of a data directory: atomically, durably and readable by their owner only."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

PRIVATE_UMASK = 0o077
"""Everything that a stack writes is readable by its owner only."""


def write_private(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the content of a file atomically, even if the machine crashes meanwhile.

    Raises OSError and leaves the file unchanged if it cannot be written.
    """
    with replaced_private(file, mode) as opened:
        opened.write(content)


@contextlib.contextmanager
def replaced_private(file: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `file` at the end, on the disk; after an error, nothing has changed.

    Raises OSError.
    """
    written = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        written.replace(file)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory onto the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(file: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    """Open a file and restrict it to its owner. A device or a pipe, such as /dev/stdout, keeps its mode.

    Raises OSError.
    """
    return open(file, mode, opener=_open_for_owner)


def _open_for_owner(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    return descriptor


def restrict(directory: Path) -> None:
    """Restrict a directory to its owner if it exists."""
    if directory.is_dir():
        directory.chmod(0o700)
