"""Inventory workers for tests: the service's handlers over a client of their own, and the books to check them by."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from inventory_service.handlers import StockHandlers
from inventory_service.marks import Marks
from inventory_service.products import COLLECTION as PRODUCTS
from inventory_service.products import INDEXES, Products
from inventory_service.releasing import Releasing
from inventory_service.reservations import COLLECTION as RESERVATIONS
from inventory_service.reservations import Reservations
from inventory_service.reserving import Reserving
from inventory_service.settings import InventorySettings
from shared import database
from shared.clock import utc_now
from shared.contracts import Message, OrderCreated, ReleaseStock, StockReservationFailed, StockReserved
from shared.database import Database, Document
from shared.failure_points import FailurePoint, SimulatedCrashError, nothing_fails

Lines = dict[str, int]
SNAPSHOT_UNAVAILABLE = 246


class Worker:
    """One inventory process's handlers, without its loops: marks are removed when `marks` is told to."""

    def __init__(
        self, db: Database, reach: FailurePoint = nothing_fails, patience: float = 10, idle: float = 0.05
    ) -> None:
        self.database = db
        self.products = Products(db, utc_now)
        self.reservations = Reservations(db, utc_now)
        self.marks = Marks(self.products, self.reservations, utc_now, idle=idle, sweep_interval=0.0)
        reserving = Reserving(self.products, self.reservations, self.marks, utc_now, reach, patience)
        releasing = Releasing(self.products, self.reservations, self.marks, utc_now, reach)
        self.handlers = StockHandlers(reserving, releasing)

    async def reserve(self, *orders: OrderCreated) -> list[Message]:
        return list(await self.handlers.reserve(orders))

    async def release(self, *order_ids: str, lines: Lines | None = None) -> list[Message]:
        return list(await self.handlers.release([release(order_id, lines or {}) for order_id in order_ids]))

    async def status(self, order_id: str) -> str | None:
        found = await self.reservations.read([order_id])
        return found[order_id].status if order_id in found else None

    async def free(self, product_id: str) -> int:
        return (await self.products.read([product_id]))[product_id].free

    async def stock(self, quantities: Lines) -> None:
        for product_id, quantity in quantities.items():
            await self.products.set_free(product_id, quantity)


@asynccontextmanager
async def inventory_database(
    url: str, prefix: str, driver: Literal["pymongo", "motor"] = "pymongo"
) -> AsyncIterator[Database]:
    """A client of one's own on the inventory database of this test."""
    client: AsyncMongoClient[Any] = database.client(InventorySettings(mongodb_url=url, mongo_driver=driver))
    db = client[f"{prefix}_inventory"]
    await database.ensure_indexes(db[PRODUCTS], INDEXES)
    yield db
    await database.close(client)


def order(
    order_id: str, lines: Lines, *, price: float = 1, prices: dict[str, float] | None = None, slot: str | None = None
) -> OrderCreated:
    """An order over these units by product."""
    items = [
        {"productId": product_id, "quantity": quantity, "price": (prices or {}).get(product_id, price)}
        for product_id, quantity in lines.items()
    ]
    total = round(sum((prices or {}).get(product_id, price) * quantity for product_id, quantity in lines.items()), 2)
    body = {"orderId": order_id, "userId": "u", "items": items, "totalAmount": total, "delivery": {"slot": slot}}
    return OrderCreated.model_validate_json(json.dumps(body))


def release(order_id: str, lines: Lines | None = None) -> ReleaseStock:
    """The command to release an order; with `lines` as the order service sends it."""
    items = [{"productId": p, "quantity": quantity, "price": 1} for p, quantity in (lines or {}).items()]
    return ReleaseStock.model_validate_json(json.dumps({"orderId": order_id, "items": items}))


class Gate:
    """Holds the next call of an async method until it is opened: a worker that stalls right there."""

    def __init__(self, target: object, method: str) -> None:
        self._original = getattr(target, method)
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._held = False
        setattr(target, method, self._call)

    async def reached(self) -> None:
        async with asyncio.timeout(5):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        if not self._held:
            self._held = True
            self._reached.set()
            await self._opened.wait()
        return await self._original(*args, **kwargs)


def crash_at(point: str, nth: int = 1) -> FailurePoint:
    """A hook that crashes the code the n-th time it gets to the point, once."""
    remaining = nth

    def reach(reached: str) -> None:
        nonlocal remaining
        if reached == point:
            remaining -= 1
            if remaining == 0:
                raise SimulatedCrashError(point)

    return reach


def outcomes(messages: Iterable[Message]) -> Counter[str]:
    """How many messages of each kind."""
    return Counter(type(message).__name__ for message in messages)


def reserved(messages: Iterable[Message]) -> set[str]:
    return {message.order_id for message in messages if isinstance(message, StockReserved)}


def refused(messages: Iterable[Message]) -> dict[str, str]:
    return {message.order_id: message.reason for message in messages if isinstance(message, StockReservationFailed)}


async def discrepancies(db: Database) -> list[str]:
    """What does not add up at this moment: reads one snapshot of both collections, by the rule in stock.py."""
    products, held = await _snapshot(db)
    found = []
    for product in products:
        if product["quantity"] is None:
            continue
        marks = product["moving"]
        out = sum(-change for change in marks.values() if change < 0)
        for order_id, reservation in held.items():
            if order_id not in marks:
                out += sum(i["quantity"] for i in reservation["items"] if i["productId"] == product["_id"])
        if product["quantity"] < 0 or product["supplied"] != product["quantity"] + out:
            found.append(f"{product['_id']}: supplied {product['supplied']}, free {product['quantity']}, out {out}")
    return found


async def _snapshot(db: Database) -> tuple[list[Document], dict[str, Document]]:
    while True:
        try:
            async with db.client.start_session(snapshot=True) as session:
                products = await db[PRODUCTS].find({}, session=session).to_list(None)
                reserved = await db[RESERVATIONS].find({"status": "RESERVED"}, session=session).to_list(None)
        except OperationFailure as error:
            if error.code != SNAPSHOT_UNAVAILABLE:  # a collection was created this moment
                raise
        else:
            return products, {document["_id"]: document for document in reserved}


async def leftovers(db: Database) -> list[str]:
    """Marks that are still on products, and products whose quantity and reservations do not add up without them."""
    found = [f"{p['_id']}: {p['moving']}" async for p in db[PRODUCTS].find({"moving": {"$ne": {}}})]
    found += [f"{p['_id']}: marked" async for p in db[PRODUCTS].find({"moving": {}, "markedSince": {"$exists": True}})]
    return found + await discrepancies(db)


@asynccontextmanager
async def watched(db: Database) -> AsyncIterator[None]:
    """Check the books over and over while the body runs; fails if they ever did not add up."""
    found: list[str] = []
    checks = 0

    async def watch(stop: Callable[[], bool]) -> None:
        nonlocal checks
        while not stop():
            found.extend(await discrepancies(db))
            checks += 1

    done = False
    watching = asyncio.create_task(watch(lambda: done))
    try:
        yield
    finally:
        done = True
        await watching
    assert not found, found[:5]
    assert checks > 0


async def settle_everything(workers: Sequence[Worker]) -> None:
    """Remove the marks that these workers, and killed ones before them, have left."""
    for worker in workers:
        await worker.marks.drain()
    await asyncio.sleep(0.002)  # a sweep looks at marks older than its interval, here zero, in whole milliseconds
    await workers[0].marks.sweep_once()
    await workers[0].marks.drain()
