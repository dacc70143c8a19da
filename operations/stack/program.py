"""The interface of a program that the supervisor keeps running."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from operations.errors import CommandError


class ServerMissingError(CommandError):
    """A server's program is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Command:
    """A command line and its complete environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


class Program(Protocol):
    """A long-running program: MongoDB, RabbitMQ and its name server, or one of the services."""

    @property
    def name(self) -> str:
        """The name in logs, tables and `status`."""

    @property
    def url(self) -> str | None:
        """The address that it listens on; None for a helper program, which is not listed."""

    @property
    def grace_seconds(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""

    def prepare(self) -> Command:
        """Create the directories and the configuration of the program and return its command."""

    async def probe(self) -> str | None:
        """Return None if the program is ready, else the reason in one line.

        Raises StackStartError if waiting does not help.
        """
