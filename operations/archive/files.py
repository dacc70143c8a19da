"""The files of an archive: gzip'd lines, each file with its checksum beside it.

    orders-<time>-<number>.jsonl.gz.partial    being written
    orders-<time>-<number>.jsonl.gz            complete on the disk, not yet verified
    orders-<time>-<number>.jsonl.gz.sha256     its checksum, as `sha256sum` writes it: the file was read back, rightly
    orders-<time>-<number>.jsonl.gz.damaged    it was not right; no order was deleted because of it
    .lock                                      locked by the process that writes to the directory

Other names are other people's: they are left alone.

A name is given by renaming what is complete and synced, so a file with a checksum is whole whenever the process or the
machine dies. Orders are deleted only after the checksum is on the disk.
"""

import contextlib
import fcntl
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from operations.archive.errors import ArchiveError
from operations.archive.filesystems import check_lasting
from operations.archive.lines import Document, digest, line_of, read_line
from operations.stack.files import sync_directory

SUFFIX = ".jsonl.gz"
PARTIAL, CHECKSUM, DAMAGED = ".partial", ".sha256", ".damaged"
LOCK = ".lock"

_OWN = re.compile(r"orders-\d{8}T\d{6}\.\d{6}Z-\d{5,}\.jsonl\.gz")

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700
COMPRESSION = 6
BLOCK = 1 << 20


@dataclass(slots=True)
class Verification:
    """The result of checking an archive: files and archived orders that are right, problems, and other files."""

    files: int = 0
    orders: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ArchiveDirectory:
    """A directory that one process at a time writes archived orders to. Errors of files become ArchiveError."""

    def __init__(self, path: Path, check: Callable[[Path], None] = check_lasting) -> None:
        """Name the directory; `check` raises ArchiveError if orders must not be written to a path."""
        self.path = directory_of(path)
        self._check = check

    @contextlib.contextmanager
    def locked(self) -> Iterator[list[str]]:
        """Create the directory and lock it, and finish what a killed process has left; yield notes about that."""
        self._check(self.path)
        with file_errors(self.path):
            make_directory(self.path)
            if self.path.stat().st_mode & 0o077:
                raise ArchiveError(f"{self.path} is open to other users: chmod 700 {self.path}")
            # Not the directory itself: NFS locks only what is open for writing.
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE)
        try:
            with file_errors(self.path):
                _lock(descriptor, self.path)
                notes = list(self._finish())
            yield notes
        finally:
            os.close(descriptor)

    def new_file(self, at: datetime, number: int) -> "ArchiveWriter":
        """Begin a new file."""
        with file_errors(self.path):
            return ArchiveWriter(self.path / f"orders-{at:%Y%m%dT%H%M%S.%fZ}-{number:05}{SUFFIX}")

    def _finish(self) -> Iterator[str]:
        """Remove incomplete files, and verify complete ones without a checksum: a process was killed before that."""
        for path in _own_files(self.path, PARTIAL, CHECKSUM + PARTIAL):
            path.unlink()
            yield f"{path.name} was incomplete and is removed; its orders are still in the databases"
        for path in _own_files(self.path, ""):
            if not _beside(path, CHECKSUM).exists():
                yield self._adopt(path)

    def _adopt(self, path: Path) -> str:
        try:
            verify_file(path)
        except ArchiveError as error:
            return str(error)
        return f"{path.name} had not been verified; now it is"


class ArchiveWriter:
    """One file of archived orders while it is written: complete or discard it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: dict[str, bytes] = {}
        """The hash of each order's record, by the order's id."""
        self.has_personal_data = False
        self._partial = _beside(path, PARTIAL)
        self._file = open(create_private(self._partial), "wb")  # noqa: SIM115 - closed by complete() and discard()
        self._lines = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=COMPRESSION, filename="", mtime=0)

    def add(self, record: Document) -> None:
        """Write an archived order."""
        with file_errors(self._partial):
            self._lines.write(line_of(record))
        self.digests[record["_id"]] = digest(record)

    def complete(self) -> Path:
        """Bring everything onto the disk, then give the file its name."""
        with file_errors(self._partial):
            self._lines.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.rename(self.path)
            sync_directory(self.path.parent)
        return self.path

    def discard(self) -> None:
        """Remove what was written, unless it is complete."""
        with contextlib.suppress(OSError, ValueError):
            self._lines.close()
        with contextlib.suppress(OSError):
            self._file.close()
        # What went wrong before matters more; the next run removes the file.
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


def verify_file(path: Path, expected: Mapping[str, bytes] | None = None) -> str:
    """Read a complete file back, write its checksum and return it; with `expected`, it must have exactly these orders.

    Raises ArchiveError if it is damaged, and renames it, so that it does not count as part of the archive.
    """
    with file_errors(path):
        try:
            checksum = _checksum_of(path, expected)
        except _DamagedError as error:
            path.rename(damaged := _beside(path, DAMAGED))
            sync_directory(path.parent)
            raise ArchiveError(f"{path.name} is damaged ({error}); it is now {damaged.name}") from error
        _write_checksum(_beside(path, CHECKSUM), f"{checksum}  {path.name}\n")
    return checksum


def _checksum_of(path: Path, expected: Mapping[str, bytes] | None) -> str:
    reading = _Reading(path)
    found = {record["_id"]: digest(record) for record in reading}
    if expected is not None and found != dict(expected):
        raise _DamagedError("it does not have the orders that were written to it")
    return reading.checksum()


def _write_checksum(path: Path, text: str) -> None:
    with open(create_private(partial := _beside(path, PARTIAL)), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_directory(path.parent)


def verify_archive(directory: Path) -> Verification:
    """Check all files of an archive against their checksums, and read every line. Raises ArchiveError."""
    result = Verification()
    with file_errors(directory):
        if not directory.is_dir():
            raise ArchiveError(f"{directory} is not a directory")
        checksums = _own_files(directory, CHECKSUM)
        for checksum in checksums:
            _verify(checksum, result)
        for path in _own_files(directory, ""):
            if _beside(path, CHECKSUM) not in checksums:
                result.notes.append(f"{path.name} has no checksum: it is not known whether it is complete")
        for path in _own_files(directory, PARTIAL, CHECKSUM + PARTIAL, DAMAGED):
            result.notes.append(f"{path.name} is not part of the archive")
    if not checksums:
        result.problems.append(f"there is no verified file in {directory}")
    return result


def _verify(checksum: Path, result: Verification) -> None:
    path = checksum.with_name(checksum.name.removesuffix(CHECKSUM))
    try:
        result.orders += _count_verified(path, checksum.read_bytes())
    except FileNotFoundError:
        result.problems.append(f"{path.name} is missing")
    except OSError as error:
        result.problems.append(f"{path.name} cannot be read: {error.strerror or error}")
    except _DamagedError as error:
        result.problems.append(f"{path.name} is damaged: {error}")
    else:
        result.files += 1


def _count_verified(path: Path, checksum: bytes) -> int:
    reading = _Reading(path)
    orders = sum(1 for _ in reading)
    if checksum != f"{reading.checksum()}  {path.name}\n".encode():
        raise _DamagedError("it does not match its checksum")
    return orders


class _DamagedError(Exception):
    """A file is not as it was written."""


class _Reading:
    """Iterates over the archived orders of a file, from the disk rather than from memory where that is possible."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[Document]:
        with self._path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while block := file.read(BLOCK):
                self._hash.update(block)
            file.seek(0)
            yield from _records(file)

    def checksum(self) -> str:
        """Return the checksum of the file, once it was read."""
        return self._hash.hexdigest()


def _records(file: IO[bytes]) -> Iterator[Document]:
    try:
        with gzip.open(file, "rb") as lines:
            yield from map(read_line, lines)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise _DamagedError(str(error)) from error


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into ArchiveError."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{error.filename or path}: {error.strerror or error}") from error


def directory_of(path: Path) -> Path:
    """Return the absolute path of a directory that exists or can be created. Raises ArchiveError if it is no such."""
    with file_errors(path):
        # A link that leads nowhere is a disk that is not mounted, rather than a directory to create.
        if not path.is_dir() and (path.exists() or path.is_symlink()):
            raise ArchiveError(f"{path} is not a directory")
        return path.resolve()


def make_directory(directory: Path) -> None:
    """Create the directory, and those above it; it is on the disk afterwards."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=PRIVATE_DIRECTORY if path == directory else 0o777, exist_ok=True)
        sync_directory(path.parent)


def _own_files(directory: Path, *suffixes: str) -> list[Path]:
    """Return the files of an archive that have one of these after the name of a file of orders, in order."""

    def is_own(path: Path) -> bool:
        named = _OWN.match(path.name)
        rest = path.name[named.end() :] if named else None
        return rest in suffixes and path.is_file() and not path.is_symlink()

    return sorted(filter(is_own, directory.iterdir()))


def create_private(path: Path) -> int:
    """Create a file that must not exist yet, readable by its owner only; return its descriptor. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArchiveError(f"another process writes to {path}") from error
