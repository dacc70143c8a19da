"""The plain payment service: `python -m benchmarks.plain.payment`. It charges a card that always pays."""

import contextlib
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from pymongo.errors import DuplicateKeyError

from benchmarks.plain.bus import Bus, Handle
from benchmarks.plain.service import Database, run


def assemble(_app: FastAPI, database: Database, bus: Bus) -> Handle:
    """Return what charges and refunds."""
    payments, gateway = database.payments, database.gateway

    async def charge(order_id: str, message: dict[str, Any]) -> None:
        payment = {"_id": order_id, "status": "PENDING", "amount": message["totalAmount"], "at": datetime.now(UTC)}
        try:
            await payments.insert_one(payment)
        except DuplicateKeyError:
            found = await payments.find_one({"_id": order_id}) or payment
            if found["status"] != "PENDING":
                return
        # The book of the gateway, which knows a charge by its key.
        with contextlib.suppress(DuplicateKeyError):
            await gateway.insert_one({"_id": order_id, "amount": message["totalAmount"]})
        await payments.update_one({"_id": order_id, "status": "PENDING"}, {"$set": {"status": "COMPLETED"}})

    async def handle(key: str, message: dict[str, Any]) -> None:
        order_id = message["orderId"]
        if key == "order.created":
            await charge(order_id, message)
            await bus.publish("payment.completed", {"orderId": order_id})
            return
        await payments.update_one({"_id": order_id, "status": "COMPLETED"}, {"$set": {"status": "REFUNDED"}})

    return handle


if __name__ == "__main__":
    run("payment", assemble)
