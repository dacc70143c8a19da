"""The plain inventory service: `python -m benchmarks.plain.inventory`."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pymongo.errors import DuplicateKeyError

from benchmarks.plain.bus import Bus, Handle
from benchmarks.plain.service import Database, run

Items = Sequence[dict[str, Any]]


class Stock:
    """Products and what is reserved of them; all or nothing of an order."""

    def __init__(self, database: Database) -> None:
        self._products = database.products
        self._reservations = database.reservations

    async def put(self, product_id: str, quantity: int) -> None:
        """Set the units of a product."""
        await self._products.update_one({"_id": product_id}, {"$set": {"available": quantity}}, upsert=True)

    async def reserve(self, order_id: str, items: Items) -> str:
        """Reserve the items of an order, once; return the event that says what came of it."""
        if (known := await self._reservations.find_one({"_id": order_id})) is not None:
            return str(known["event"])
        event = "stock.reserved" if await self._take(order_id, items) else "stock.rejected"
        try:
            await self._reservations.insert_one({"_id": order_id, "event": event, "items": items})
        except DuplicateKeyError:
            return event
        for item in items:  # the record says it from now on
            await self._products.update_one({"_id": item["productId"]}, {"$pull": {"taken": order_id}})
        return event

    async def release(self, order_id: str) -> None:
        """Give back what an order has reserved, once."""
        released = {"$set": {"event": "stock.released"}}
        found = await self._reservations.find_one_and_update({"_id": order_id, "event": "stock.reserved"}, released)
        for item in found["items"] if found else ():
            await self._products.update_one({"_id": item["productId"]}, {"$inc": {"available": item["quantity"]}})

    async def _take(self, order_id: str, items: Items) -> bool:
        """Take the units of each product. The order is noted there, so that a repetition takes nothing."""
        for number, item in enumerate(items):
            guard = {"_id": item["productId"], "available": {"$gte": item["quantity"]}, "taken": {"$ne": order_id}}
            change = {"$inc": {"available": -item["quantity"]}, "$push": {"taken": order_id}}
            found = await self._products.update_one(guard, change)
            if not found.matched_count and not await self._has_taken(order_id, item):
                await self._give_back(order_id, items[:number])
                return False
        return True

    async def _has_taken(self, order_id: str, item: dict[str, Any]) -> bool:
        return await self._products.find_one({"_id": item["productId"], "taken": order_id}) is not None

    async def _give_back(self, order_id: str, items: Items) -> None:
        for item in items:
            change = {"$inc": {"available": item["quantity"]}, "$pull": {"taken": order_id}}
            await self._products.update_one({"_id": item["productId"], "taken": order_id}, change)


def assemble(app: FastAPI, database: Database, bus: Bus) -> Handle:
    """Add the route for stock, and return what reserves and releases it."""
    stock = Stock(database)

    @app.put("/inventory/{product_id}")
    async def put(product_id: str, body: dict[str, Any]) -> dict[str, Any]:
        await stock.put(product_id, body["quantity"])
        return {"productId": product_id, **body}

    async def handle(key: str, message: dict[str, Any]) -> None:
        order_id, event = message["orderId"], "stock.released"
        if key == "order.created":
            event = await stock.reserve(order_id, message["items"])
        else:
            await stock.release(order_id)
        await bus.publish(event, {"orderId": order_id})

    return handle


if __name__ == "__main__":
    run("inventory", assemble)
