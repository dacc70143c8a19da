"""Inventory workers for tests: the service's handlers over a separate client, and checks of the books."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from pymongo.errors import OperationFailure

from inventory_service.handlers import StockHandlers
from inventory_service.hold_limits import HoldLimits
from inventory_service.holds import Holds
from inventory_service.pending_moves import PendingMoves
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import COLLECTION as RESERVATIONS
from inventory_service.reservations import Reservations
from inventory_service.returner import Returner
from inventory_service.schema import SCHEMA
from inventory_service.shipper import Shipper
from inventory_service.slot_assigner import AssignmentRequest, AssignmentResult, SlotAssigner
from inventory_service.slots import SlotRules, Slots
from inventory_service.stock import SLOT
from inventory_service.stock_items import COLLECTION as PRODUCTS
from inventory_service.stock_items import StockItems
from inventory_service.timetable import Rules
from shared import schema
from shared.clock import Clock, utc_now
from shared.contracts import (
    Message,
    OrderCreated,
    ReleaseStock,
    ReturnStock,
    ShipStock,
    StockReservationFailed,
    StockReserved,
)
from shared.contracts.orders import ReturnedItem
from shared.database import Database, Document
from shared.failpoints import Failpoint, SimulatedCrashError, nothing_fails
from tests.support.builders import connected

Lines = dict[str, int]
SNAPSHOT_UNAVAILABLE = 246


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, moment: datetime) -> None:
        self.now = moment

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


class Worker:
    """The handlers of one inventory process, without its background loops: tests clear `pending_moves` themselves."""

    def __init__(
        self,
        db: Database,
        failpoint: Failpoint = nothing_fails,
        max_wait: float = 10,
        idle: float = 0.05,
        clock: Clock = utc_now,
        max_holds: int = 20,
    ) -> None:
        self.database = db
        self.clock = clock
        self.stock_items = StockItems(db, clock)
        self.reservations = Reservations(db, clock)
        self.rules = SlotRules(db, clock)
        self.slots = Slots(self.stock_items, self.rules, clock)
        self.pending_moves = PendingMoves(self.stock_items, self.reservations, clock, idle=idle, sweep_interval=0.0)
        processor = ReservationProcessor(
            self.stock_items, self.reservations, self.rules, self.pending_moves, clock, failpoint, max_wait
        )
        releaser = Releaser(self.stock_items, self.reservations, self.pending_moves, clock, failpoint)
        self.assigner = SlotAssigner(self.reservations, processor, releaser)
        shipper = Shipper(self.stock_items, self.reservations, self.pending_moves, failpoint)
        returner = Returner(self.stock_items, self.reservations, self.pending_moves, failpoint)
        self.hold_limits = HoldLimits(db, self.reservations, clock, max_holds)
        self.holds = Holds(self.reservations, self.hold_limits, processor, releaser, clock, failpoint)
        self.handlers = StockHandlers(processor, releaser, shipper, returner, self.holds)

    async def reserve(self, *orders: OrderCreated) -> list[Message]:
        return list(await self.handlers.reserve(orders))

    async def release(self, *order_ids: str, lines: Lines | None = None) -> list[Message]:
        return list(await self.handlers.release([release(order_id, lines or {}) for order_id in order_ids]))

    async def ship(self, *order_ids: str) -> list[Message]:
        return list(await self.handlers.ship([ShipStock(order_id=order_id) for order_id in order_ids]))

    async def put_back(self, order_id: str, refund_id: str, lines: Lines) -> list[Message]:
        return list(await self.handlers.put_back([put_back(order_id, refund_id, lines)]))

    async def status(self, order_id: str) -> str | None:
        found = await self.reservations.read([order_id])
        return found[order_id].status if order_id in found else None

    async def free(self, product_id: str) -> int:
        return (await self.stock_items.read([product_id]))[product_id].free

    async def stock(self, quantities: Lines) -> None:
        for product_id, quantity in quantities.items():
            await self.stock_items.set_free(product_id, quantity)

    async def slot_rules(self, **changes: int) -> None:
        """Set the rules of delivery slots: the defaults with these changes, amounts in minor units."""
        await self.rules.write(Rules(**changes))

    async def assign(self, order_id: str, price: int, items_count: int = 1) -> AssignmentResult:
        """Request a slot as another system does; the price in minor units."""
        return (await self.assigner.assign([AssignmentRequest(order_id, price, items_count)]))[0]

    async def slot_of(self, order_id: str) -> str | None:
        """Return the slot that an order's own reservation names."""
        reservation = (await self.reservations.read([order_id])).get(order_id)
        return reservation.booking.slot_id if reservation is not None and reservation.booking is not None else None

    async def loads(self) -> dict[str, int]:
        """Return the load of every recorded slot, in minor units."""
        slots = await self.database[PRODUCTS].find({"kind": SLOT}).sort("start").to_list(None)
        return {slot["_id"]: slot["supplied"] - slot["quantity"] for slot in slots}


@asynccontextmanager
async def inventory_database(url: str, prefix: str, driver: str = "pymongo") -> AsyncIterator[Database]:
    """Connect a separate client to the inventory database of this test."""
    async with connected(url, f"{prefix}_inventory", driver) as db:
        await schema.prepare(db, SCHEMA)
        yield db


@asynccontextmanager
async def shared_database(url: str, clients: int = 1, driver: str = "pymongo") -> AsyncIterator[list[Database]]:
    """Connect clients to one database for all tests of a module; each test starts with `empty`.

    Creating and dropping a database takes longer than most of these tests.
    """
    prefix = f"t{secrets.token_hex(8)}"
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(inventory_database(url, prefix, driver)) for _ in range(clients)]
        yield found
        await found[0].client.drop_database(found[0].name)


async def empty(db: Database) -> None:
    """Delete all documents but keep collections and indexes."""
    for name in SCHEMA:
        await db[name].delete_many({})


def order(
    order_id: str, lines: Lines, *, price: float = 1, prices: dict[str, float] | None = None, slot: str | None = None
) -> OrderCreated:
    """Build an order for these units, by product."""
    items = [
        {"productId": product_id, "quantity": quantity, "price": (prices or {}).get(product_id, price)}
        for product_id, quantity in lines.items()
    ]
    total = round(sum((prices or {}).get(product_id, price) * quantity for product_id, quantity in lines.items()), 2)
    body = {"orderId": order_id, "userId": "u", "items": items, "totalAmount": total, "delivery": {"slot": slot}}
    return OrderCreated.model_validate_json(json.dumps(body))


def release(order_id: str, lines: Lines | None = None) -> ReleaseStock:
    """Build the command to release an order; the order service sends it with `lines`."""
    items = [{"productId": p, "quantity": quantity, "price": 1} for p, quantity in (lines or {}).items()]
    return ReleaseStock.model_validate_json(json.dumps({"orderId": order_id, "items": items}))


def put_back(order_id: str, refund_id: str, lines: Lines) -> ReturnStock:
    items = tuple(ReturnedItem(product_id=product_id, quantity=quantity) for product_id, quantity in lines.items())
    return ReturnStock(order_id=order_id, refund_id=refund_id, items=items)


class Gate:
    """Holds the next call of an async method until it is opened, as if the worker stalled there.

    With `after` the call is made first, and what it returns is held: the worker goes on with an old answer.
    """

    def __init__(self, target: object, method: str, *, after: bool = False) -> None:
        self._after = after
        self._original = getattr(target, method)
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._held = False
        setattr(target, method, self._call)

    async def reached(self) -> None:
        async with asyncio.timeout(60):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        is_held = not self._held
        self._held = True
        if is_held and not self._after:
            await self._wait()
        answer = await self._original(*args, **kwargs)
        if is_held and self._after:
            await self._wait()
        return answer

    async def _wait(self) -> None:
        self._reached.set()
        await self._opened.wait()


def crash_at(point: str, nth: int = 1) -> Failpoint:
    """Return a hook that crashes the code once, when it reaches the point for the n-th time."""
    remaining = nth

    def failpoint(reached: str) -> None:
        nonlocal remaining
        if reached == point:
            remaining -= 1
            if remaining == 0:
                raise SimulatedCrashError(point)

    return failpoint


def outcomes(messages: Iterable[Message]) -> Counter[str]:
    """Count the messages of each kind."""
    return Counter(type(message).__name__ for message in messages)


def reserved(messages: Iterable[Message]) -> set[str]:
    return {message.order_id for message in messages if isinstance(message, StockReserved)}


def refused(messages: Iterable[Message]) -> dict[str, str]:
    return {message.order_id: message.reason for message in messages if isinstance(message, StockReservationFailed)}


async def discrepancies(db: Database) -> list[str]:
    """Return what does not add up by the rule in stock.py, in one snapshot of both collections."""
    products, held = await _snapshot(db)
    found = []
    for product in products:
        if product["quantity"] is None:
            continue
        moves = product["moving"]
        out = sum(-change for change in moves.values() if change < 0)
        moved = {order_id for order_id, change in moves.items() if change}
        out += sum(_held(held[order_id], product["_id"]) for order_id in held.keys() - moved)
        back = {
            order_id: _returned(order_id, held.get(order_id), product)
            for order_id in {*held, *(key.split(":")[2] for key in moves if key.startswith("return:"))}
            if moves.get(order_id, 0) <= 0
        }
        out -= sum(back.values())
        shipped = sum(
            _held(reservation, product["_id"]) - back.get(order_id, 0)
            for order_id, reservation in held.items()
            if reservation["status"] == "SHIPPED" or moves.get(order_id) == 0
        )
        if product["kind"] != SLOT and product.get("shipped", 0) != shipped:
            found.append(f"{product['_id']}: {product.get('shipped', 0)} shipped, by the reservations {shipped}")
        if _too_much_is_out(product) or product["supplied"] != product["quantity"] + out:
            found.append(f"{product['_id']}: supplied {product['supplied']}, free {product['quantity']}, out {out}")
    return found


def _held(reservation: Document, item_id: str) -> int:
    """Return what a reservation holds of this item."""
    slot = reservation.get("slot") or {}
    if slot.get("slotId") == item_id:
        return int(slot["price"])
    return sum(item["quantity"] for item in reservation["items"] if item["productId"] == item_id)


def _returned(order_id: str, reservation: Document | None, product: Document) -> int:
    """Return the units of an order that its refunds have put back: recorded, or only moved yet."""
    if reservation is None:
        return 0
    recorded = {
        f"return:{each['refundId']}:{order_id}": sum(
            item["quantity"] for item in each["items"] if item["productId"] == product["_id"]
        )
        for each in reservation.get("returns", ())
    }
    moved = {key: change for key, change in product["moving"].items() if key.endswith(f":{order_id}")}
    return sum((moved | recorded).values())


def _too_much_is_out(item: Document) -> bool:
    """Return whether more is out than was supplied, or than a slot had booked when its capacity was lowered."""
    return bool(item["supplied"] - item["quantity"] > max(item["supplied"], item.get("ceiling") or 0))


async def _snapshot(db: Database) -> tuple[list[Document], dict[str, Document]]:
    while True:
        try:
            async with db.client.start_session(snapshot=True) as session:
                products = await db[PRODUCTS].find({}, session=session).to_list(None)
                reserved = (
                    await db[RESERVATIONS]
                    .find({"status": {"$in": ["RESERVED", "SHIPPED"]}}, session=session)
                    .to_list(None)
                )
        except OperationFailure as error:
            if error.code != SNAPSHOT_UNAVAILABLE:  # a collection has just been created
                raise
        else:
            return products, {document["_id"]: document for document in reserved}


async def unsettled_records(db: Database) -> list[str]:
    """Return moves that are still pending, and items whose quantity and reservations do not add up."""
    found = [f"{p['_id']}: {p['moving']}" async for p in db[PRODUCTS].find({"moving": {"$ne": {}}})]
    found += [
        f"{p['_id']}: pending since" async for p in db[PRODUCTS].find({"moving": {}, "markedSince": {"$exists": True}})
    ]
    return found + await discrepancies(db)


@asynccontextmanager
async def watched(db: Database) -> AsyncIterator[None]:
    """Check the books continuously while the body runs; fail if they ever do not add up."""
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


async def settle_everything(workers: Sequence[Worker], clock: HandClock | None = None) -> None:
    """Clear the moves that these workers and killed ones have left; `clock` is the workers' if tests move it.

    It sweeps twice, because an assignment is abandoned by the second sweep that finds it undecided.
    """
    for worker in workers:
        await worker.pending_moves.drain()
    for _ in range(2):
        # A sweep reads moves older than its interval, here zero, in whole milliseconds.
        if clock is None:
            await asyncio.sleep(0.002)
        else:
            clock.forward(milliseconds=1)
        await workers[0].pending_moves.sweep_once()
        await workers[0].pending_moves.drain()
