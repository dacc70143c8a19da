"""What a supervisor has to know of a program that it keeps running."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class ServerMissingError(Exception):
    """A server's program is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Command:
    """A command line with the whole environment it runs in."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


class Program(Protocol):
    """A long-running program: MongoDB, RabbitMQ and its name server, or one of the services."""

    @property
    def name(self) -> str:
        """The name that logs, tables and `status` use."""

    @property
    def url(self) -> str | None:
        """Where it listens; None for a program that only helps another one and is not listed."""

    @property
    def grace_seconds(self) -> float:
        """How long it may take to end after SIGTERM before it is killed."""

    def prepare(self) -> Command:
        """Write what the program needs to start (directories, configuration) and return its command."""

    async def probe(self) -> str | None:
        """Return None when it is ready, else one line that says what is missing. Never raises."""
