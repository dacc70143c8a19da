"""Handlers for the messages that become events: they record the deliveries of each event, and send no message."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from prometheus_client import Counter

from notification_service.deliveries import Deliveries
from notification_service.delivery import ENDPOINT_DISABLED, Delivery, Status
from notification_service.endpoint import Endpoint
from notification_service.endpoints import Endpoints
from notification_service.events import MESSAGES, Event, event_from, is_for_staff, owner_of
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import Message

_recorded = Counter("webhook_deliveries_recorded_total", "Deliveries recorded, one for each event and endpoint")

OnDue = Callable[[Iterable[str]], None]
"""Called with the ids of endpoints that have deliveries due."""


class EventHandlers:
    """Records the events of messages; a repeated message changes nothing."""

    def __init__(self, endpoints: Endpoints, deliveries: Deliveries, clock: Clock, on_due: OnDue) -> None:
        self._endpoints = endpoints
        self._deliveries = deliveries
        self._clock = clock
        self._on_due = on_due

    async def record(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Record the deliveries of what has happened, in one write.

        Those for a disabled endpoint are recorded as failed, so that its owner can ask for them later.
        """
        owners = {owner_of(message) for message in messages if not is_for_staff(message)}
        endpoints = await self._endpoints.of_owners(owners, for_staff=any(map(is_for_staff, messages)))
        if not endpoints:
            return []
        events = [event_from(message, self._clock()) for message in messages]
        deliveries = [
            delivery_of(event, endpoint, self._clock())
            for event in events
            for endpoint in endpoints
            if endpoint.wants(event)
        ]
        await self._deliveries.insert(deliveries)
        _recorded.inc(len(deliveries))
        self._on_due({each.endpoint_id for each in deliveries if each.status is Status.PENDING})
        return []


def delivery_of(event: Event, endpoint: Endpoint, now: datetime) -> Delivery:
    """Return the delivery of an event to an endpoint, due at once unless the endpoint is disabled."""
    return Delivery(
        endpoint_id=endpoint.id,
        event_id=event.id,
        type=event.type,
        body=event.body,
        created_at=now,
        status=Status.PENDING if endpoint.enabled else Status.FAILED,
        owner_id=endpoint.owner_id,
        order_id=event.order_id,
        due_at=now if endpoint.enabled else None,
        failure_reason=None if endpoint.enabled else ENDPOINT_DISABLED,
    )


def handlers(endpoints: Endpoints, deliveries: Deliveries, clock: Clock, on_due: OnDue) -> Handlers:
    """Map message types to handlers."""
    events = EventHandlers(endpoints, deliveries, clock, on_due)
    return dict.fromkeys(MESSAGES, events.record)
