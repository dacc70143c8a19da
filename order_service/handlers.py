"""Handles the answers of the participants and of provisioning: each advances the order that it belongs to.

A whole batch is one read and one write. If another worker changed any order of the batch meanwhile, all of them are
read and decided again: transitions that are stored already only repeat their messages.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from order_service.deadlines import Timeouts, after_message
from order_service.metrics import count_changes
from order_service.order import HistoryEntry, Order
from order_service.orders import Change, Orders
from order_service.saga import SAGA
from shared import tracing
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import ConsumerPausesChanged, Message, OrderMessage
from shared.errors import PoisonError, TransientError
from shared.pausing.records import PauseRecords
from shared.services import ANSWERING

ATTEMPTS = 20
"""Conflicts are bounded: every lost race means that another worker made progress."""


class Listener(Protocol):
    """A part of this process that needs to know of changed orders."""

    def announce(self, orders: Iterable[Order]) -> None:
        """Take note of orders as they are stored now."""
        ...


class AnswerHandlers:
    """The order service's handler of answers."""

    def __init__(self, orders: Orders, timeouts: Timeouts, clock: Clock, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = listeners
        self._orders = orders
        self._timeouts = timeouts
        self._clock = clock

    async def advance_orders(self, answers: Sequence[OrderMessage]) -> Sequence[Message]:
        """Advance the orders that the answers belong to; raises PoisonError if one of them does not exist."""
        for _ in range(ATTEMPTS):
            orders = await self._orders.load(answer.order_id for answer in answers)
            changes, messages = self._decide(orders, answers)
            if await self._orders.apply(changes):
                count_changes(changes)
                for change in changes:
                    tracing.note(change.after.order_id, change.after.status)
                for listener in self._listeners:
                    listener.announce(change.after for change in changes)
                return messages
        raise TransientError(f"other workers changed the orders of {len(answers)} answers first, {ATTEMPTS} times")

    def _decide(self, orders: dict[str, Order], answers: Sequence[OrderMessage]) -> tuple[list[Change], list[Message]]:
        now = self._clock()
        current = dict(orders)
        entries: dict[str, list[HistoryEntry]] = {}
        messages: list[Message] = []
        for answer in answers:
            order = current.get(answer.order_id)
            if order is None:
                raise PoisonError(f"{answer.routing_key} for order {answer.order_id}, which does not exist")
            transition = SAGA.advance(order, answer, now)
            messages.extend(transition.messages)
            if transition.entry is not None:
                current[order.order_id] = after_message(order, transition, now, self._timeouts)
                entries.setdefault(order.order_id, []).append(transition.entry)
        changes = [
            Change(orders[order_id], current[order_id], tuple(new_entries)) for order_id, new_entries in entries.items()
        ]
        return changes, messages


class PauseHandlers:
    """The order service's handler of the pauses of other services, which deadlines depend on."""

    def __init__(self, records: PauseRecords, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def note_pauses(self, changes: Sequence[ConsumerPausesChanged]) -> Sequence[Message]:
        """Store the newest state of each; raises PoisonError for a service that no order waits for."""
        for change in changes:
            if change.service not in {service.name for service in ANSWERING}:
                raise PoisonError(f"{change.routing_key} of {change.service}, which answers no order")
            await self._records.copy(change, self._clock())
        return ()


def handlers(
    orders: Orders, pauses: PauseRecords, timeouts: Timeouts, clock: Clock, listeners: Sequence[Listener]
) -> Handlers:
    """Return the handler of each answer: the same for all, so that the answers of a join can meet in one batch."""
    answers = dict.fromkeys(SAGA.answer_types, AnswerHandlers(orders, timeouts, clock, listeners).advance_orders)
    return {**answers, ConsumerPausesChanged: PauseHandlers(pauses, clock).note_pauses}
