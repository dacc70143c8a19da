"""Chooses the ports of a stack: the preferred ones if they are free, others if not, never one of another stack.

A chosen port is free until a program listens on it, so a stack that starts at the same time would choose it too.
Therefore each port is claimed by an flock on a file with its number; the kernel releases the claim when the process
ends, however it ends.
"""

import fcntl
import os
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from operations.errors import CommandError

# Below the range that Linux uses for outgoing connections (32768 and up): any connection could take a port of that
# range before the server listens on it.
FREE_PORTS = range(20000, 32000)


class PortTakenError(CommandError):
    """A required port is taken by another process."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: without it, connections in TIME_WAIT look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class PortClaims:
    """The ports that one stack has claimed; a context manager that releases them."""

    def __init__(self, directory: Path | None = None) -> None:
        # Not below TMPDIR: stacks that have another one would not see each other's claims.
        self._directory = directory or Path("/tmp") / f"ordersaga-ports-{os.getuid()}"  # noqa: S108 - flocks only
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._claims: dict[int, int] = {}
        self._reserved: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release every claimed or reserved port."""
        for held in (self._claims, self._reserved):
            while held:
                os.close(held.popitem()[1])

    def reserve(self, ports: Iterable[int]) -> None:
        """Keep other stacks from claiming these ports, on which processes of this stack still listen.

        Without it another stack could take them in the moment between their end and `claim`.
        """
        for port in ports:
            if port not in self._reserved and (lock := self._lock(port)) is not None:
                self._reserved[port] = lock

    def claim(self, port: int) -> bool:
        """Claim one port; return False if it is taken or claimed by another stack."""
        lock = self._reserved.pop(port, None) or self._lock(port)
        if lock is None:
            return False
        if not is_free(port):
            os.close(lock)
            return False
        self._claims[port] = lock
        return True

    def _lock(self, port: int) -> int | None:
        lock = os.open(self._directory / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def claim_free(self) -> int:
        """Claim any free port.

        Raises PortTakenError after a thousand attempts.
        """
        for port in random.sample(FREE_PORTS, 1000):
            if self.claim(port):
                return port
        raise PortTakenError(f"no free port found between {FREE_PORTS.start} and {FREE_PORTS.stop}")

    def claim_exactly(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Claim exactly these ports, by name.

        Raises PortTakenError with every port that is taken.
        """
        taken = [f"{port} ({name})" for name, port in wanted.items() if not self.claim(port)]
        if taken:
            self.release()
            raise PortTakenError("these ports are taken: " + ", ".join(taken))
        return dict(wanted)

    def claim_preferred(self, names: Iterable[str], *preferences: Mapping[str, int]) -> dict[str, int]:
        """Claim a port for each name: the first preferred port that is free, else any free port."""
        return {name: self._first_free(name, preferences) for name in names}

    def _first_free(self, name: str, preferences: Iterable[Mapping[str, int]]) -> int:
        wanted = (preference[name] for preference in preferences if name in preference)
        return next((port for port in wanted if self.claim(port)), None) or self.claim_free()
