"""Orders and connections for tests, with sensible defaults."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from operations.reading.participant_records import ByParticipant
from order_service.deadlines import Timeouts
from order_service.order import Order
from shared import database
from shared.clock import utc_now
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.database import Database, Document
from shared.settings import ServiceSettings
from tests.support.memory_databases import MEMORY, memory_connected

TIMEOUTS = Timeouts(
    saga_timeout=timedelta(minutes=5),
    failed_hold=timedelta(days=1),
    republish_after=timedelta(seconds=10),
    resend_after=timedelta(seconds=30),
)


def new_id() -> str:
    """Return a unique order id."""
    return secrets.token_hex(16)


def an_order(**changes: Any) -> Order:
    """A pending order of two units of p1 at 5.00 each."""
    now: datetime = changes.pop("now", utc_now())
    order = Order(
        order_id=new_id(),
        user_id="u1",
        items=(Item(product_id="p1", quantity=2, price=500),),
        total_amount=1000,
        currency="USD",
        payment=PaymentInstruction(),
        delivery=DeliveryInstruction(),
        created_at=now,
        updated_at=now,
        deadline=now + TIMEOUTS.saga_timeout,
    )
    return replace(order, **changes)


def records_of(**records: Document | None) -> ByParticipant:
    """Return the records of an order by the name of the participant, without those that do not exist."""
    return {participant: record for participant, record in records.items() if record is not None}


def order_body(**changes: Any) -> dict[str, Any]:
    """Return the body of a new order: one unit of p1 for 10."""
    return {"userId": "u1", "items": [{"productId": "p1", "quantity": 1, "price": 10}], "totalAmount": 10, **changes}


@asynccontextmanager
async def connected(mongodb_url: str, name: str, driver: str = "pymongo") -> AsyncIterator[Database]:
    """Open a separate connection to the database, like that of one process; both may be MEMORY instead."""
    if MEMORY in (mongodb_url, driver):
        async with memory_connected(name) as found:
            yield found
        return
    settings = ServiceSettings(mongodb_url=mongodb_url, mongo_driver=driver)
    mongo = database.client(settings)
    try:
        yield mongo[name]
    finally:
        await database.close(mongo)
