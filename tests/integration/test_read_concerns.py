"""Every read of the services returns what a majority has, so no decision rests on what a failover takes back."""

from typing import Any

import pytest
from pymongo import monitoring

from shared import tracing
from tests.support.builders import order_body
from tests.support.sharding import sender_of_command
from tests.support.shop import A_SERVER, open_shop

SERVICES = ("order_service", "inventory_service", "payment_service", "provisioning_service")
READS = frozenset({"find", "aggregate", "count", "distinct"})
NO_DECISION = {"payment_service/ledger/orphaned_sessions.py: find on transaction_sessions"}
"""When a process was last seen: the newest time is the safest, and what is ended is begun again."""
LASTING = frozenset({"majority", "linearizable", "snapshot"})


class LocalReads(monitoring.CommandListener):
    """The reads of services that may return what a failover takes back."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.seen: set[str] = set()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Look at a command that is sent."""
        command, sender = event.command, sender_of_command()
        if event.command_name not in READS or sender is None or not sender.startswith(SERVICES):
            return
        self.seen.add(sender.partition("/")[0])
        # Of a transaction, only the first command says what all of it reads.
        if command.get("readConcern", {}).get("level") not in LASTING and "txnNumber" not in command:
            self.found.add(f"{sender}: {event.command_name} on {command[event.command_name]}")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Do nothing."""


async def test_services_read_what_a_majority_has(
    mongodb_url: str, database_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = LocalReads()
    monkeypatch.setattr(tracing, "database_listeners", lambda: [reads])
    async with open_shop(mongodb_url, database_prefix) as shop, shop.all_running():
        goods, server = await shop.place(), await shop.place(**A_SERVER)
        declined: dict[str, Any] = {"payment": {"token": "tok_declined"}}
        cancelled = (await shop.ask("order", "POST", "/orders", order_body(**declined)))["orderId"]
        assert (await shop.settled(goods))["status"] == "CONFIRMED"
        assert (await shop.settled(server))["status"] == "COMPLETED"
        assert (await shop.settled(cancelled))["status"] == "CANCELLED"
    assert reads.seen == set(SERVICES)
    assert not reads.found - NO_DECISION
