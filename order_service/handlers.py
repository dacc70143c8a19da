"""The answers of inventory, payment and provisioning, carried into the orders they belong to.

A whole batch is one read and one write. Where another worker was quicker for any order of the batch, all are read and
decided again: steps that are stored already only repeat their messages.
"""

from collections.abc import Sequence

from order_service.alarms import Patience, after_message
from order_service.metrics import count_steps
from order_service.order import Entry, Order
from order_service.orders import Change, Orders
from order_service.saga import advance
from shared import tracing
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import (
    Message,
    OrderMessage,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    StockReleased,
    StockReservationFailed,
    StockReserved,
)
from shared.errors import PoisonError, TransientError

ATTEMPTS = 20
"""Two workers can only be in each other's way a few times: each time, one of them has got further."""


class AnswerHandlers:
    """What the order service does with answers."""

    def __init__(self, orders: Orders, patience: Patience, clock: Clock) -> None:
        self._orders = orders
        self._patience = patience
        self._clock = clock

    async def carry_on(self, answers: Sequence[OrderMessage]) -> Sequence[Message]:
        """Advance the orders that the answers belong to; raises PoisonError if one of them does not exist."""
        for _ in range(ATTEMPTS):
            orders = await self._orders.load({answer.order_id for answer in answers})
            changes, messages = self._decide(orders, answers)
            if await self._orders.apply(changes):
                count_steps(changes)
                for change in changes:
                    tracing.note(change.after.order_id, change.after.status)
                return messages
        raise TransientError(f"{len(answers)} answers lost against other workers {ATTEMPTS} times")

    def _decide(self, orders: dict[str, Order], answers: Sequence[OrderMessage]) -> tuple[list[Change], list[Message]]:
        now = self._clock()
        current = dict(orders)
        entries: dict[str, list[Entry]] = {}
        messages: list[Message] = []
        for answer in answers:
            order = current.get(answer.order_id)
            if order is None:
                raise PoisonError(f"{answer.routing_key} for order {answer.order_id}, which does not exist")
            step = advance(order, answer, now)  # type: ignore[arg-type]  # the table below names only events of the saga
            messages.extend(step.messages)
            if step.entry is not None:
                current[order.order_id] = after_message(order, step, now, self._patience)
                entries.setdefault(order.order_id, []).append(step.entry)
        changes = [
            Change(orders[order_id], current[order_id], tuple(new_entries)) for order_id, new_entries in entries.items()
        ]
        return changes, messages


def handlers(orders: Orders, patience: Patience, clock: Clock) -> Handlers:
    """Which handler takes which message: one takes all, so that both answers of the join may meet in one batch."""
    carry_on = AnswerHandlers(orders, patience, clock).carry_on
    return {
        StockReserved: carry_on,
        StockReservationFailed: carry_on,
        StockReleased: carry_on,
        PaymentProcessed: carry_on,
        PaymentFailed: carry_on,
        PaymentRefunded: carry_on,
        ProvisioningProgress: carry_on,
        ProvisioningCompleted: carry_on,
        ProvisioningFailed: carry_on,
    }
