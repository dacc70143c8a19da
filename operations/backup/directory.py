"""The directory of a backup: `DIR.partial` while it is written, `DIR` once everything is on the disk."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from operations.archive.files import PRIVATE_DIRECTORY, directory_of, file_errors, make_directory
from operations.errors import DataDirectoryError
from operations.stack.files import sync_directory

PARTIAL = ".partial"


@contextlib.contextmanager
def new_backup(path: Path) -> Iterator[Path]:
    """Yield a new directory to write a backup to; it gets its name at the end, and is removed after an error.

    Raises DataDirectoryError if there is something in the directory, or another backup is being written to it.
    """
    directory = directory_of(path)
    partial = directory.with_name(directory.name + PARTIAL)
    with file_errors(directory):
        if directory.is_dir() and any(directory.iterdir()):
            raise DataDirectoryError(f"{directory} is not empty: a backup needs a directory of its own")
        make_directory(directory.parent)
        try:
            partial.mkdir(mode=PRIVATE_DIRECTORY)
        except FileExistsError:
            raise DataDirectoryError(
                f"{partial} exists: another backup writes to it, or was interrupted; in that case delete it"
            ) from None
    try:
        yield partial
        with file_errors(directory):
            for part in (*(found for found in partial.iterdir() if found.is_dir()), partial):
                sync_directory(part)
            partial.rename(directory)
            sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def empty(directory: Path) -> None:
    """Remove everything in the directory."""
    with file_errors(directory):
        for found in directory.iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()
