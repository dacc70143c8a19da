"""Files that may change while a process runs: certificates, keys and other secrets."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from shared.errors import StartError

CHECK_SECONDS = 2.0
"""How long a change may go unnoticed while the value is used."""

Value = TypeVar("Value")
_Version = tuple[tuple[int, int, int] | None, ...]

_log = structlog.get_logger(__name__)


class WatchedFiles(Generic[Value]):
    """What was read from some files; it is read again when one of them has changed.

    `read` raises OSError, ValueError or StartError for files that it cannot use. The former value then stays in use,
    and the reason is logged once. Files that belong together change one after the other, so a reason is only logged if
    it still holds at the next check.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], Value],
        what: str,
        *,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files; what `read` raises passes through. `what` is the name of the value in the log."""
        self._paths = tuple(paths)
        self._read = read
        self._what = what
        self._check_seconds = check_seconds
        self._clock = clock
        self._version = self._current_version()
        self._unusable: _Version | None = None
        self._logged: _Version | None = None
        self._value = read()
        self._checked = clock()

    def current(self) -> Value:
        """Return the value; the files are checked at most every `check_seconds`."""
        return self._value if self._clock() - self._checked < self._check_seconds else self.refresh()

    def refresh(self) -> Value:
        """Check the files now and return the value."""
        self._checked = self._clock()
        version = self._current_version()
        if version == self._version or version == self._logged:
            return self._value
        try:
            self._value = self._read()
        except (OSError, ValueError, StartError) as error:
            self._note(version, error)
        else:
            self._version = version
            self._unusable = self._logged = None
            _log.info("read again after a change", what=self._what)
        return self._value

    def _note(self, version: _Version, error: Exception) -> None:
        if version == self._unusable:
            self._logged = version
            _log.error("cannot be read after a change, the former one stays in use", what=self._what, why=str(error))
        self._unusable = version

    def _current_version(self) -> _Version:
        return tuple(_file_version(path) for path in self._paths)


def _file_version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
