"""Clocks of single processes that jump while the process runs, by libfaketime.

The library replaces what tells a process the time of day, and reads once a second from a file by how much to change it.
What measures durations stays right, as when a machine's clock is set. The library leaves shared memory behind when its
process is killed, which goes with the mounts of the run (see `namespaces`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from operations.stack.files import write_private

LIBRARY = "libfaketimeMT.so.1"
"""The one for programs with several threads."""
DIRECTORIES: Sequence[Path] = (
    *Path("/usr/lib").glob("*/faketime"),
    Path("/usr/lib/faketime"),
    Path("/usr/lib64/faketime"),
    Path("/usr/local/lib/faketime"),
)
TAKEN_WITHIN = 1
"""The whole seconds within which a process takes a change."""


def library() -> Path | None:
    """Return the library where distributions install it."""
    return next((found for directory in DIRECTORIES if (found := directory / LIBRARY).exists()), None)


def missing() -> str | None:
    """Return why clocks cannot jump."""
    return None if library() else "needs libfaketime (apt-get install libfaketime)"


@dataclass(frozen=True, slots=True)
class FakedClock:
    """The clock of processes that are started with its environment."""

    file: Path

    def environment(self) -> Mapping[str, str]:
        """Return the variables for a process. It may be called only if nothing is missing."""
        self.set_ahead(0.0)
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": str(TAKEN_WITHIN),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_ahead(self, seconds: float) -> None:
        """Let the clock be ahead by so many seconds, or behind; a process takes it within `TAKEN_WITHIN`."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.file, f"{seconds:+.3f}\n".encode())
