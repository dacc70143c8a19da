"""The plain order service: `python -m benchmarks.plain.order`."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pymongo.errors import DuplicateKeyError

from benchmarks.plain.bus import Bus, Handle
from benchmarks.plain.service import Database, run

_WAITING, _FAILED = "PENDING", ("REJECTED", "FAILED")
_STATES = {
    "stock.reserved": ("stock", "RESERVED"),
    "stock.rejected": ("stock", "REJECTED"),
    "stock.released": ("stock", "RELEASED"),
    "payment.completed": ("payment", "COMPLETED"),
    "payment.failed": ("payment", "FAILED"),
    "payment.refunded": ("payment", "REFUNDED"),
}


class Item(BaseModel):
    """A line of an order."""

    model_config = ConfigDict(alias_generator=to_camel)

    product_id: Annotated[str, Field(min_length=1, max_length=200)]
    quantity: Annotated[int, Field(ge=1)]
    price: Annotated[float, Field(ge=0)]


class Payment(BaseModel):
    """The card that pays for it."""

    token: str


class NewOrder(BaseModel):
    """What a client posts."""

    model_config = ConfigDict(alias_generator=to_camel)

    user_id: Annotated[str, Field(min_length=1, max_length=200)]
    items: Annotated[list[Item], Field(min_length=1)]
    total_amount: Annotated[float, Field(ge=0)]
    payment: Payment


def assemble(app: FastAPI, database: Database, bus: Bus) -> Handle:
    """Add the routes, and return what handles the answers of the other services."""
    orders = database.orders

    @app.post("/orders", status_code=202)
    async def place(new: NewOrder, idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        if round(sum(item.quantity * item.price for item in new.items), 2) != round(new.total_amount, 2):
            raise HTTPException(422, "totalAmount is not the sum of the items")
        now = datetime.now(UTC)
        order = {
            "_id": idempotency_key or uuid.uuid4().hex,
            "status": _WAITING,
            "stock": _WAITING,
            "payment": _WAITING,
            "body": new.model_dump(by_alias=True),
            "createdAt": now,
            "history": [{"at": now, "event": "order.created"}],
            "version": 1,
        }
        try:
            await orders.insert_one(order)
        except DuplicateKeyError:
            return _shown(await orders.find_one({"_id": order["_id"]}) or order)
        await bus.publish("order.created", {"orderId": order["_id"], **new.model_dump(by_alias=True)})
        return _shown(order)

    @app.get("/orders/{order_id}")
    async def get(order_id: str) -> dict[str, Any]:
        if (order := await orders.find_one({"_id": order_id})) is None:
            raise HTTPException(404)
        return _shown(order)

    async def advance(key: str, answer: dict[str, Any]) -> None:
        part, state = _STATES[key]
        while True:
            order = await orders.find_one({"_id": answer["orderId"]})
            if order is None or order[part] == state:
                return
            after = {**order, part: state}
            now = datetime.now(UTC)
            change = {
                "$set": {part: state, "status": _status(after), "updatedAt": now},
                "$inc": {"version": 1},
                "$push": {"history": {"at": now, "event": key}},
            }
            found = await orders.update_one({"_id": order["_id"], "version": order["version"]}, change)
            if found.matched_count:
                await _publish_consequences(bus, order, after)
                return

    return advance


def _status(order: dict[str, Any]) -> str:
    if order["stock"] in _FAILED or order["payment"] in _FAILED:
        return "CANCELLED"
    return "CONFIRMED" if (order["stock"], order["payment"]) == ("RESERVED", "COMPLETED") else order["status"]


async def _publish_consequences(bus: Bus, before: dict[str, Any], after: dict[str, Any]) -> None:
    status = _status(after)
    if status == before["status"]:
        return
    await bus.publish(f"order.{status.lower()}", {"orderId": after["_id"]})
    if status == "CANCELLED":
        await bus.publish("stock.release", {"orderId": after["_id"]})
        await bus.publish("payment.refund", {"orderId": after["_id"]})


def _shown(order: dict[str, Any]) -> dict[str, Any]:
    return {"orderId": order["_id"], "status": order["status"], **order["body"]}


if __name__ == "__main__":
    run("order", assemble)
