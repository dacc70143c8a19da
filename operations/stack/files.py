"""Writing the files of a data directory: each as a whole, on the disk when it is said to be, for its owner alone."""

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, Literal

PRIVATE_UMASK = 0o077
"""Nothing that a stack writes is for anyone but its owner."""


def write_private(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the file's content, all of it or nothing, even if the machine stops meanwhile.

    Raises OSError, and leaves the file as it was, when it cannot be written.
    """
    written = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        written.replace(file)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    _sync_directory(file.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(file: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    """Open a file for its owner alone, whatever its mode was. A device or a pipe, such as /dev/stdout, keeps its mode.

    Raises OSError.
    """
    return open(file, mode, opener=_open_for_owner)


def _open_for_owner(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    return descriptor


def restrict(directory: Path) -> None:
    """Take other users' access to a directory away, if there is one."""
    if directory.is_dir():
        directory.chmod(0o700)
