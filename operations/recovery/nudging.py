"""Sends an order again what it is owed: the commands that it waits for answers to, to the services that answer them.

It is what a recovery does for every order, for one.
"""

from datetime import datetime

from pymongo import AsyncMongoClient
from pymongo.read_concern import ReadConcern

from operations.actions import recorded_attempt
from operations.reading.publishing import publish_once, to_inboxes
from order_service import recovery as pending
from order_service.order import Order, Status
from order_service.orders import from_document
from order_service.particulars import UNREAD
from order_service.saga import SAGA
from shared import tracing
from shared.bus import Envelope
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.database import Database, Document
from shared.errors import NewerOrderError, RefusalError
from shared.services import CONSOLE, ORDER

ACTION = "order.nudge"


class NotNudgeableError(RefusalError):
    """Nothing can be sent again for the order; the message says why."""


async def nudge(
    client: AsyncMongoClient[Document], prefix: str, publisher: Publisher, order_id: str, *, by: str, why: str
) -> list[str]:
    """Send an order's pending commands again, and log who did it and why; return their types.

    Raises NotNudgeableError, and UnreachableError if the broker does not take them; a repeat is safe.
    """
    # No message may rest on a write that a failover could take back.
    orders = client[ORDER.database_in(prefix)].get_collection("orders", read_concern=ReadConcern("majority"))
    envelopes = pending_envelopes(await orders.find_one({"_id": order_id}, {"history": False, **UNREAD}), utc_now())
    operations: Database = client[CONSOLE.database_in(prefix)]
    types = list(dict.fromkeys(each.type for each in envelopes))
    done = f"sent again: {', '.join(types)}"
    async with recorded_attempt(operations, by=by, why=why, action=ACTION, subject=order_id, done=done):
        await publish_once(publisher, envelopes)
    return types


def pending_envelopes(document: Document | None, now: datetime) -> list[Envelope]:
    """Return the pending commands of a stored order, addressed to the inboxes of those who answer them.

    Raises NotNudgeableError if there are none.
    """
    if document is None:
        raise NotNudgeableError("the order service does not know this order")
    try:
        order = from_document(document)
        messages = pending.commands(order, now) if SAGA.awaits_answer(order) else ()
        if not messages:
            raise NotNudgeableError(_why_nothing(order, now))
        return to_inboxes(messages, tracing.headers(order.traceparent))
    except NewerOrderError as error:
        raise NotNudgeableError(f"{error}: nudge it with that release") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise NotNudgeableError("its record is damaged, and cannot be put into messages") from error


def _why_nothing(order: Order, now: datetime) -> str:
    if order.settled:
        return f"it is {order.status} and settled, and waits for nothing"
    if order.status is Status.FAILED:
        return "it is FAILED and waits for a decision: retry or refund it"
    if pending.is_overdue(order, now):
        return "its deadline has passed, and the order service is about to cancel it"
    return f"it is {order.status}, and no message is pending"
