"""The result of a recovery: what was published by type, and what needs something else."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.clock import to_rfc3339

MOST_NAMED = 20
"""The most ids of unsendable orders that a report has."""


@dataclass(slots=True)
class RecoveryReport:
    """What a recovery published; that of a dry run says what it would publish."""

    since: datetime
    """The events since then are published again."""
    missing: list[str] = field(default_factory=list)
    """The exchanges and queues that the broker did not have, such as `queue order.inbox`."""
    orders: int = 0
    """Orders that wait for answers."""
    commands: Counter[str] = field(default_factory=Counter)
    """Their commands, by type."""
    events: Counter[str] = field(default_factory=Counter)
    """Events since the time, by type."""
    overdue: int = 0
    """PENDING orders past their deadline, which the order service cancels by itself."""
    held: int = 0
    """FAILED orders whose money waits for a decision."""
    unsendable: list[str] = field(default_factory=list)
    """The first orders that cannot be put into messages."""
    newer: int = 0
    """Unsettled orders of a newer release, which only its own `ordersaga recover` can send for."""
    continuing: dict[str, int] = field(default_factory=dict)
    """Records that their services continue with by themselves, by kind."""
    letters_without_outcome: int = 0
    """Replayed dead letters of which nobody has reported an outcome."""

    @property
    def ok(self) -> bool:
        """True if everything pending could be published."""
        return not self.unsendable and not self.newer

    def in_words(self) -> str:
        """Describe what was published, for the log of actions."""
        return (
            f"{self.commands.total()} commands of {self.orders} orders and {self.events.total()} events published, "
            f"{len(self.missing)} exchanges and queues declared"
        )

    def note_unsendable(self, order_id: str) -> None:
        """Note an order that cannot be put into messages."""
        if len(self.unsendable) < MOST_NAMED and order_id not in self.unsendable:
            self.unsendable.append(order_id)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON document shows it."""
        return {
            "ok": self.ok,
            "missing": self.missing,
            "orders": self.orders,
            "commands": dict(sorted(self.commands.items())),
            "eventsSince": to_rfc3339(self.since),
            "events": dict(sorted(self.events.items())),
            "overdueOrders": self.overdue,
            "heldOrders": self.held,
            "unsendableOrders": self.unsendable,
            "ordersOfNewerRelease": self.newer,
            "continuing": self.continuing,
            "lettersWithoutOutcome": self.letters_without_outcome,
        }
