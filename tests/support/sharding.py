"""Watches the commands that the product sends, for those that a collection sharded by the hash of `_id` refuses.

Before MongoDB 7.0, an update, a deletion or a findAndModify of one document needs the whole shard key, and so does
every upsert. docs/sharding.md lists the shapes of all operations.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from pymongo import monitoring

ROOT = Path(__file__).parents[2]
PRODUCT = tuple(
    str(ROOT / package)
    for package in (
        *("order_service", "inventory_service", "payment_service", "provisioning_service", "notification_service"),
        *("operations", "shared"),
    )
)


class RefusedCommands(monitoring.CommandListener):
    """The commands of the product that were refused on a sharded collection, with the module that sent each."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Look at a command that is sent."""
        for query in _of_one_document(event.command_name, event.command):
            if not _names_one(query) and (sender := sender_of_command()):
                collection = event.command[event.command_name]
                self.found.add(f"{sender}: {event.command_name} on {collection} by {', '.join(sorted(query))}")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Do nothing."""


def _of_one_document(name: str, command: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the queries of a command that must find exactly one document, or insert it."""
    match name:
        case "findAndModify":
            yield command["query"]
        case "update":
            yield from (each["q"] for each in command["updates"] if not each.get("multi") or each.get("upsert"))
        case "delete":
            yield from (each["q"] for each in command["deletes"] if each["limit"] == 1)


def _names_one(query: Mapping[str, Any]) -> bool:
    named = query.get("_id")
    return "_id" in query and not (isinstance(named, Mapping) and any(key.startswith("$") for key in named))


def sender_of_command() -> str | None:
    """Return the module of the product that sends the command of the calling listener; None if a test does."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PRODUCT):
            return str(Path(path).relative_to(ROOT))
        if path.startswith(str(ROOT / "tests")):
            return None
        frame = frame.f_back
    return None


refused = RefusedCommands()
"""Of all clients in this process that are opened after `watch`."""


def watch() -> None:
    """Look at the commands of every client that this process opens from now on."""
    monitoring.register(refused)
