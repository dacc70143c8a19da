"""Returns the stock and money that are held for an order which the order service does not know.

A forged or foreign `order.created` reserves and charges without an order that could be cancelled. So the compensations
are published directly. Both are idempotent by the order id.
"""

from pymongo import AsyncMongoClient

from operations.actions import ORDER_RELEASE, recorded_attempt
from operations.reading.connection import open_bus
from operations.reading.participant_records import PARTICIPANT_RECORDS
from operations.reading.publishing import publish_once, to_inboxes
from operations.timeline.records import read_records
from operations.timeline.timeline import TimelineRecords
from order_service.order import Order
from order_service.participants import PARTICIPANTS
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.contracts.orders import DeliveryInstruction, PaymentInstruction
from shared.database import Database, Document
from shared.errors import RefusalError
from shared.services import CONSOLE

COMMANDS = " and ".join(participant.undo_type.routing_key for participant in PARTICIPANTS)
SENT = f"{COMMANDS} sent"
NAME = "ordersaga-release"
REASON = "returned by an operator: the order service does not know the order"


class NotReleasableError(RefusalError):
    """Nothing may be released for the order id; the message says why."""


def refuse_release(records: TimelineRecords) -> str | None:
    """Return why nothing may be released for the order id, None if it may."""
    if records.order is not None:
        status = records.order.get("status")
        return (
            f"the order service knows order {records.order_id} ({status}) and manages what is held for it: "
            "cancel or refund the order in the console or through the order service"
        )
    if not records.by_participant:
        nothing = " and ".join(f"no {row.noun}" for row in PARTICIPANT_RECORDS)
        return f"nothing is held for order {records.order_id}: there is {nothing}"
    return None


def holds_something(records: TimelineRecords) -> bool:
    """Return whether a release for the order id is possible, and would return anything."""
    held = (row for row in PARTICIPANT_RECORDS if row.participant.name in records.by_participant)
    return records.order is None and any(not row.is_released(records.by_participant) for row in held)


async def release_held(
    client: AsyncMongoClient[Document], prefix: str, amqp_url: str, order_id: str, *, by: str, why: str
) -> None:
    """Send the undo command of every participant for the order id, and log who did it and why.

    Raises NotReleasableError, and UnreachableError when a server does not answer; a repeat is safe.
    """
    if reason := refuse_release(await read_records(client, prefix, order_id)):
        raise NotReleasableError(reason)
    operations: Database = client[CONSOLE.database_in(prefix)]
    order = _unknown_order(order_id)
    async with (
        recorded_attempt(operations, by=by, why=why, action=ORDER_RELEASE, subject=order_id, done=SENT),
        open_bus(amqp_url, None, name=NAME) as bus,
    ):
        await publish_once(Publisher(bus), to_inboxes(participant.undo(order) for participant in PARTICIPANTS))


def _unknown_order(order_id: str) -> Order:
    """Return an order of which only the id is known: enough for the undo commands."""
    now = utc_now()
    return Order(
        order_id=order_id,
        user_id="",
        items=(),
        total_amount=0,
        currency="",
        payment=PaymentInstruction(),
        delivery=DeliveryInstruction(),
        created_at=now,
        updated_at=now,
        deadline=now,
        failure_reason=REASON,
    )
