"""What the pauses of services mean for an order: its deadline is later, and its commands are not sent again. Pure.

An order that waits for a paused service has its whole time again from the end of the pause on. That is at least what
the pause took from it, and leaves the service the time for all that has piled up.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from order_service.order import Order, Status
from order_service.participants import PARTICIPANTS, PENDING
from order_service.saga import SAGA
from shared.contracts import Message
from shared.pausing.pause import Pause, Pauses, as_last_heard, running
from shared.pausing.records import PauseRecord
from shared.services import ANSWERING, ORDER
from shared.topology import INBOXES


def _receivers() -> Mapping[type[Message], frozenset[str]]:
    found: dict[type[Message], frozenset[str]] = {}
    for service in ANSWERING:
        for message in INBOXES[service.inbox]:
            found[message] = found.get(message, frozenset()) | {service.name}
    return found


_RECEIVERS = _receivers()
"""The services that answer each command."""
_FOR_NEW_ORDERS = frozenset({ORDER.name}).union(*(_RECEIVERS[each.undo_type] for each in PARTICIPANTS))
"""The services that every order needs before it can settle."""


def awaited_services(order: Order) -> frozenset[str]:
    """Return the names of the services whose answers the order waits for."""
    if order.status is Status.PENDING:
        silent = (participant for participant in PARTICIPANTS if participant.state(order) == PENDING)
        return frozenset().union(*(_RECEIVERS[participant.undo_type] for participant in silent))
    try:
        commands = SAGA.pending_commands(order)
    except ValueError:  # it cannot be put into messages
        return frozenset()
    return frozenset().union(*(_RECEIVERS[type(command)] for command in commands if type(command) in _RECEIVERS))


def waits_for_paused_only(order: Order, paused: Collection[str]) -> bool:
    """Return whether repeated commands would only pile up: all services that the order waits for are paused.

    Or the order service itself is, whose inbox the answers wait in.
    """
    awaited = awaited_services(order)
    return bool(awaited) and (awaited <= frozenset(paused) or ORDER.name in paused)


def new_orders_wait(paused: Collection[str]) -> bool:
    """Return whether new orders cannot settle while these services are paused."""
    return bool(_FOR_NEW_ORDERS.intersection(paused))


def known_pauses(records: Iterable[PauseRecord], hears_since: datetime, now: datetime) -> Mapping[str, Pauses]:
    """Return the pauses of each service, by its name; what is known of others is over when their news stay away.

    `hears_since` is when this process could be told again, after its start or an outage of the broker.
    """
    return {
        record.service: record.pauses
        if record.heard_at is None
        else as_last_heard(record.pauses, max(record.heard_at, hears_since), now)
        for record in records
    }


def paused_services(pauses: Mapping[str, Pauses], now: datetime) -> frozenset[str]:
    """Return the names of the services whose consumption is paused."""
    return frozenset(service for service, known in pauses.items() if running(known, now))


def deadline_with(order: Order, pauses: Mapping[str, Pauses], saga_timeout: timedelta, now: datetime) -> datetime:
    """Return the deadline of a PENDING order: later than its own if it waits for what is, or was, paused.

    That counts for pauses that began before its time was over. While one runs, the deadline is the whole time from now.
    Messages of the order service itself wait as well while it is paused, whatever the answers.
    """
    relevant = awaited_services(order) | {ORDER.name}
    known = [pause for service in relevant for pause in pauses.get(service, ())]
    deadline = order.deadline
    for pause in sorted(known, key=lambda pause: pause.since):
        end = _end(pause, now)
        if pause.since < deadline and end > order.created_at:
            deadline = max(deadline, end + saga_timeout)
    return deadline


def _end(pause: Pause, now: datetime) -> datetime:
    return now if pause.end is None else min(pause.end, now)
