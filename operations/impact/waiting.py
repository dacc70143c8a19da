"""Which services a stored order waits for, and so which orders wait for one that is away. Pure."""

from datetime import datetime

from operations.reading.participant_records import PARTICIPANT_RECORDS
from operations.recovery.nudging import NotNudgeableError, pending_envelopes
from order_service.participants import PENDING
from shared.database import Document
from shared.services import ORDER, SERVICES

RABBITMQ = "RabbitMQ"

_BRING_ANSWERS = frozenset({RABBITMQ, ORDER.name})
"""Every order that waits for an answer waits for these too: one brings it, the other takes it."""

_BY_INBOX = {service.inbox: service.name for service in SERVICES.values()}


def services_awaited(order: Document, now: datetime) -> frozenset[str]:
    """Return the names of the services, and of the broker, that the order waits for.

    None if it is settled, waits for a decision, or for its time to be over.
    """
    answering = _answering(order, now)
    return answering | _BRING_ANSWERS if answering else answering


def _answering(order: Document, now: datetime) -> frozenset[str]:
    """Return the services whose answers the order waits for.

    An order that is placed goes to all participants at once, and waits for those that have not answered.
    """
    if order.get("settled") is not False:
        return frozenset()
    if order.get("status") == PENDING:
        return frozenset(row.service.name for row in PARTICIPANT_RECORDS if row.state_in(order) == PENDING)
    try:
        envelopes = pending_envelopes(order, now)
    except NotNudgeableError:
        return frozenset()
    return frozenset(_BY_INBOX[each.routing_key] for each in envelopes if each.routing_key in _BY_INBOX)
