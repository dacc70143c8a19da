"""What affected orders amount to, which of two causes does more harm, and how a bounded effort is shared out. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from operations.order_actions.search import OrderTotals, totals_of
from order_service.participants import PENDING, STOCK
from shared.clock import to_rfc3339
from shared.database import Document
from shared.money import to_json_number, to_minor_units

_NEVER = datetime.max.replace(tzinfo=UTC)

Harm = tuple[int, int, int, datetime]


@dataclass(frozen=True, slots=True)
class Impact:
    """The orders that are affected; amounts are in minor units by currency.

    `unsettled` are those to which something is still to happen: their money is at stake. `unknown` counts the
    letters that lead to no order: they name none, or one that the order service does not know. Unless it is `complete`,
    not everything was looked at, and all numbers are at least that high.
    """

    total: OrderTotals
    unsettled: OrderTotals
    by_status: Mapping[str, int]
    deadline: datetime | None
    unknown: int = 0
    complete: bool = True

    @property
    def all_settled(self) -> bool:
        """Whether there are orders, all of them were looked at, and nothing is still to happen to any."""
        return self.complete and not self.unknown and self.total.orders > 0 and self.unsettled.orders == 0

    @property
    def harm(self) -> Harm:
        """The key by which the greatest harm comes first.

        Money at stake, added up over all currencies as if they were one; then customers with unsettled orders; then
        unsettled orders; then the earlier deadline.
        """
        unsettled = self.unsettled
        at_stake = sum(unsettled.amounts.values())
        return -at_stake, -unsettled.customers, -unsettled.orders, self.deadline or _NEVER

    def as_json(self) -> dict[str, Any]:
        """Return the impact as a JSON document shows it."""
        return {
            "orders": self.total.orders,
            "ordersByStatus": dict(self.by_status),
            "unsettledOrders": self.unsettled.orders,
            "customers": self.total.customers,
            "amounts": _major(self.total.amounts),
            "amountsAtStake": _major(self.unsettled.amounts),
            "nextDeadline": to_rfc3339(self.deadline) if self.deadline else None,
            "withoutOrder": self.unknown,
            "complete": self.complete,
        }


def impact_from_json(document: Mapping[str, Any]) -> Impact:
    """Return the impact that a JSON document shows; how many customers have unsettled orders is not in it."""
    deadline = document["nextDeadline"]
    return Impact(
        total=OrderTotals(document["orders"], document["customers"], minor_amounts(document["amounts"])),
        unsettled=OrderTotals(document["unsettledOrders"], 0, minor_amounts(document["amountsAtStake"])),
        by_status=document["ordersByStatus"],
        deadline=datetime.fromisoformat(deadline) if deadline else None,
        unknown=document["withoutOrder"],
        complete=document["complete"],
    )


def minor_amounts(amounts: Mapping[str, Any]) -> dict[str, int]:
    """Return amounts by currency in minor units, out of a JSON document."""
    return {currency: to_minor_units(amount) for currency, amount in amounts.items()}


def impact_of(
    orders: Sequence[Document],
    *,
    hold_ends: Mapping[str, datetime] | None = None,
    unknown: int = 0,
    complete: bool = True,
) -> Impact:
    """Return what these stored orders amount to; `hold_ends` says when the holds end that some of them wait for."""
    unsettled = [order for order in orders if order.get("settled") is False]
    deadlines = [at for order in unsettled if (at := deadline_of(order, hold_ends or {})) is not None]
    return Impact(
        total=totals_of(orders),
        unsettled=totals_of(unsettled),
        by_status=dict(sorted(Counter(str(order.get("status")) for order in orders).items())),
        deadline=min(deadlines, default=None),
        unknown=unknown,
        complete=complete,
    )


def deadline_of(order: Document, hold_ends: Mapping[str, datetime]) -> datetime | None:
    """Return when the order's time is over: it is cancelled, loses its hold, or its money is returned.

    None if no time is set. A pending order times out, or its hold ends first if no stock is reserved yet; a failed one
    is held for a decision.
    """
    if order.get("settled") is not False:
        return None
    if order.get("status") == PENDING:
        ends = [order.get("deadline")]
        if order.get(STOCK.stored_field) == PENDING:
            ends.append(hold_ends.get(str(order.get("holdId"))))
        return min((at for at in ends if isinstance(at, datetime)), default=None)
    if order.get("status") == "FAILED" and not order.get("compensating") and not order.get("unpublished"):
        return at if isinstance(at := order.get("dueAt"), datetime) else None
    return None


def share_out(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Share a budget out: small ones get all they need, and the others the same; everyone gets at least one.

    Nobody gets more than its size, and as long as there are no more takers than the budget, all shares together are at
    most the budget.
    """
    shares: dict[str, int] = {}
    left = budget
    for position, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        fair = left // (len(sizes) - position)
        shares[name] = min(sizes[name], max(1, fair))
        left -= shares[name]
    return shares


def _major(amounts: Mapping[str, int]) -> dict[str, int | float]:
    return {currency: to_json_number(amount) for currency, amount in amounts.items()}
