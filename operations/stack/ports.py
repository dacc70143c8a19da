"""Ports for one stack: preferred ones where they are free, others where not, never one that another stack chose.

A free port is not one's own until something listens on it, and a stack starting at the same time would find it
free as well. So each port is claimed by an flock on a file named for it; the kernel drops the claim with the
process that holds it, however that process ends.
"""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

# Below the range from which Linux takes the ports of outgoing connections (32768 and up): a port of that range
# may be taken by any connection between the moment it was found free and the moment the server listens.
FREE_PORTS = range(20000, 32000)


class PortTakenError(Exception):
    """A port that had to be this one is taken by another process."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set it too: without it, connections that linger in TIME_WAIT look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class PortClaims:
    """The ports that one stack has claimed; a context manager that gives them back."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or Path(tempfile.gettempdir()) / f"ordersaga-ports-{os.getuid()}"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._claims: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give every claimed port back."""
        while self._claims:
            os.close(self._claims.popitem()[1])

    def claim(self, port: int) -> bool:
        """Claim one port; False when it is taken or another stack has claimed it."""
        claim = os.open(self._directory / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            return False
        if not is_free(port):
            os.close(claim)
            return False
        self._claims[port] = claim
        return True

    def claim_free(self) -> int:
        """Claim any free port.

        Raises PortTakenError when a thousand tries found none.
        """
        for port in random.sample(FREE_PORTS, 1000):
            if self.claim(port):
                return port
        raise PortTakenError(f"no free port found between {FREE_PORTS.start} and {FREE_PORTS.stop}")

    def claim_exactly(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Claim just these ports (name to port).

        Raises PortTakenError, naming each that is taken.
        """
        taken = [f"{port} ({name})" for name, port in wanted.items() if not self.claim(port)]
        if taken:
            self.release()
            raise PortTakenError("these ports are taken: " + ", ".join(taken))
        return dict(wanted)

    def claim_preferred(self, names: Iterable[str], *preferences: Mapping[str, int]) -> dict[str, int]:
        """Claim a port for each name: the first of its preferences that is free, else any free port."""
        return {name: self._first_free(name, preferences) for name in names}

    def _first_free(self, name: str, preferences: Iterable[Mapping[str, int]]) -> int:
        wanted = (preference[name] for preference in preferences if name in preference)
        return next((port for port in wanted if self.claim(port)), None) or self.claim_free()
