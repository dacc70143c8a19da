"""The primary of three members is cut off, killed, and comes back, while orders are placed and messages handled.

What is decided must hold on the primary that a majority follows: neither a former primary that still takes itself for
one, nor a new one that does not show all of its data yet, may lead to a wrong answer. Times are not asserted, as the
machine may be busy; `benchmarks` are for these.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import pytest
from pymongo import WriteConcern
from pymongo.read_concern import ReadConcern

from inventory_service.reservations import COLLECTION as RESERVATIONS
from order_service.handlers import AnswerHandlers
from order_service.order import Status
from order_service.orders import COLLECTION as ORDERS
from order_service.orders import NewRecord, Orders
from payment_service.payments import COLLECTION as PAYMENTS
from provisioning_service.ownership import COLLECTION as ADDRESSES
from provisioning_service.ownership import Ownership
from shared import contracts, database
from shared.clock import utc_now
from shared.database import Collection, Database
from shared.errors import TransientError
from shared.settings import ServiceSettings
from tests.support.builders import TIMEOUTS, an_order, connected, order_body
from tests.support.eventually import eventually
from tests.support.inventory_worker import Worker, order
from tests.support.payment_workers import MovableClock, order_created, payment_worker
from tests.support.processes import Stack, run_stack
from tests.support.replica_set import Member, ReplicaSet, replica_set

STOCK = 100_000
CLIENTS = 4
SOME = 15
"""Orders that are accepted in each phase."""
MAJORITY = ReadConcern("majority")


@pytest.fixture(scope="module")
async def started_members() -> AsyncIterator[ReplicaSet]:
    async with replica_set() as members:
        yield members


@pytest.fixture
async def members(started_members: ReplicaSet) -> ReplicaSet:
    """Three members, all of them well."""
    await started_members.caught_up()
    return started_members


class Client:
    """A client that places orders, each under its own key and again until it is accepted."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.accepted: list[str] = []
        self.refused = Counter[str]()
        self._stopping = False

    async def run(self) -> None:
        while not self._stopping:
            self.accepted.append(await self._place(secrets.token_hex(8)))

    def stop(self) -> None:
        self._stopping = True

    async def _place(self, key: str) -> str:
        body, headers = order_body(payment={"token": "tok_ok"}), {"Idempotency-Key": key}
        while True:
            answer = await self._stack.client.post(f"{self._stack.url('order')}/orders", json=body, headers=headers)
            if answer.status_code == 202:
                return str(answer.json()["orderId"])
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
            self.refused[answer.json()["type"]] += 1
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def clients_of(stack: Stack) -> AsyncIterator[list[Client]]:
    """Clients that place orders until the context ends, when all their orders are accepted."""
    clients = [Client(stack) for _ in range(CLIENTS)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())
        yield clients
        for client in clients:
            client.stop()


async def _some_more_are_accepted(clients: list[Client]) -> None:
    before = sum(len(client.accepted) for client in clients)
    await eventually(lambda: sum(len(client.accepted) for client in clients) >= before + SOME, 90, "orders")


async def test_orders_go_on_while_the_primary_is_cut_off_and_killed_and_comes_back(
    members: ReplicaSet, clean_broker: str, unique_id: str
) -> None:
    async with run_stack(members.url, clean_broker, f"t{unique_id}", ready_grace_seconds=300) as stack:
        await stack.start()
        await stack.stock("p1", STOCK)
        async with clients_of(stack) as clients:
            await _some_more_are_accepted(clients)
            former = await members.primary()
            with former.paused():
                await members.primary(other_than=former)
                await _some_more_are_accepted(clients)
                ready = await stack.client.get(f"{stack.url('order')}/readyz")
                assert ready.status_code == 200, "no load balancer takes it away for an election"
            await _some_more_are_accepted(clients)
            await members.caught_up()
            killed = await members.primary()
            await members.kill(killed)
            await members.primary(other_than=killed)
            await _some_more_are_accepted(clients)
            await members.start(killed)
        accepted = [order_id for client in clients for order_id in client.accepted]
        orders = await stack.all_settled(accepted, within=120)
        assert Counter(each["status"] for each in orders) == {"CONFIRMED": len(accepted)}
        assert len(set(accepted)) == len(accepted)
        assert (await stack.inventory("p1"))["reserved"] == len(accepted), "nothing is lost or doubled"
        await stack.assert_books_balance()


async def test_an_order_whose_write_is_not_answered_is_told_apart_by_its_key(
    members: ReplicaSet, clean_broker: str, unique_id: str
) -> None:
    """Under a key it is 503, to be repeated; without one 504, because a repetition would be a second order."""
    async with run_stack(members.url, clean_broker, f"t{unique_id}", placement_timeout_seconds=1) as stack:
        await stack.start("order")
        await eventually(lambda: _is_accepted(_post(stack, "earlier")), 60, "the first order")
        key = {"Idempotency-Key": unique_id}
        async with members.writes_unanswered():
            without_key, under_key = await asyncio.gather(_post(stack, "without"), _post(stack, "under", **key))
        assert without_key.status_code == 504, without_key.text
        assert without_key.json()["type"] == "/problems/outcome-unknown"
        assert "Retry-After" not in without_key.headers
        assert (under_key.status_code, under_key.headers["Retry-After"]) == (503, "1"), under_key.text
        await eventually(lambda: _is_accepted(_post(stack, "under", **key)), 60, "the repetition")
        stored = f"{stack.url('order')}{without_key.headers['Location']}"
        await eventually(lambda: _is_accepted(stack.client.get(stored)), 60, "the order that was not answered")
        for user in ("without", "under"):
            listed = await stack.client.get(f"{stack.url('order')}/orders", params={"userId": user})
            assert len(listed.json()["items"]) == 1


async def _post(stack: Stack, user: str, **headers: str) -> httpx.Response:
    return await stack.client.post(f"{stack.url('order')}/orders", json=order_body(userId=user), headers=headers)


async def _is_accepted(answer: Awaitable[httpx.Response]) -> bool:
    return (await answer).is_success


@pytest.fixture
async def mongo(members: ReplicaSet, unique_id: str) -> AsyncIterator[Database]:
    async with connected(members.url, f"t{unique_id}_inventory") as found:
        yield found
        await found.client.drop_database(found.name)


class HiddenRecords:
    """Records that were written and are not shown to reads of a majority, as on a primary that was just elected."""

    def __init__(self, primary: Member) -> None:
        self._primary = primary
        self._records: list[tuple[Collection, dict[str, Any]]] = []

    async def hide(self, collection: Collection, record_id: str) -> None:
        """Take a record away; it is written again, without being shown, while `not_shown` lasts."""
        document = await collection.find_one({"_id": record_id})
        assert document is not None
        await collection.delete_one({"_id": record_id})
        self._records.append((collection, document))

    @contextlib.asynccontextmanager
    async def not_shown(self) -> AsyncIterator[None]:
        async with self._primary.failpoint("disableSnapshotting"):
            for collection, document in self._records:
                await collection.with_options(write_concern=WriteConcern(1)).insert_one(document)
                shown = collection.with_options(read_concern=MAJORITY)
                assert await shown.find_one({"_id": document["_id"]}) is None
            yield


async def test_what_a_new_primary_does_not_show_yet_is_found(members: ReplicaSet, mongo: Database) -> None:
    """A message about a record that must exist is not a dead letter, and an address has one owner."""
    orders, handlers = await _orders(mongo)
    inventory = Worker(mongo)
    addresses = Ownership(mongo.get_collection(ADDRESSES, read_concern=MAJORITY))
    hidden = HiddenRecords(await members.primary())
    placed = an_order()
    await orders.insert([NewRecord(placed)])
    await inventory.stock({"p1": 10})
    await inventory.reserve(order("shipped", {"p1": 1}), order("returned", {"p1": 1}))
    await addresses.claim("103.181.91.1", "first", utc_now())
    async with payment_worker(members.url, mongo.name, clock=MovableClock()) as payment:
        paid = order_created("tok_ok", 1000)
        await payment.charge(paid)
        await hidden.hide(mongo[ORDERS], placed.order_id)
        await hidden.hide(mongo[RESERVATIONS], "shipped")
        await hidden.hide(mongo[RESERVATIONS], "returned")
        await hidden.hide(mongo[ADDRESSES], "103.181.91.1")
        await hidden.hide(payment.database[PAYMENTS], paid.order_id)
        async with hidden.not_shown():
            results = asyncio.gather(
                handlers.advance_orders([contracts.StockReserved(order_id=placed.order_id)]),
                inventory.ship("shipped"),
                inventory.put_back("returned", "r1", {"p1": 1}),
                payment.refund_part(paid.order_id, "r1", 100),
                addresses.claim("103.181.91.1", "second", utc_now()),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(results), 0.5)
        *_, owner = await results
    assert (await orders.load([placed.order_id]))[placed.order_id].version == placed.version + 1
    assert await inventory.status("shipped") == "SHIPPED"
    assert owner == "first"


async def test_a_former_primary_that_takes_itself_for_the_primary_decides_nothing(
    members: ReplicaSet, mongo: Database
) -> None:
    orders, handlers = await _orders(mongo)
    ownership = Ownership(mongo.get_collection(ADDRESSES, read_concern=MAJORITY))
    before = an_order()
    await orders.insert([NewRecord(before)])
    former = await members.primary()
    async with former.failpoint("blockHeartbeatStepdown"):
        with former.paused():
            await members.primary(other_than=former)
            await handlers.advance_orders([contracts.StockReservationFailed(order_id=before.order_id, reason="none")])
            later = an_order()
            await orders.insert([NewRecord(later)])
            await ownership.claim("103.181.91.1", "first", utc_now())
        async with _connected_to(former, mongo.name) as stale:
            old_orders, old_handlers = await _orders(stale)
            assert (await old_orders.load([before.order_id]))[before.order_id].status is Status.PENDING
            answer = contracts.PaymentProcessed(order_id=before.order_id, transaction_id="tx")
            await _decides_nothing(old_handlers.advance_orders([answer]))
            unknown = contracts.StockReserved(order_id=later.order_id)
            await _decides_nothing(old_handlers.advance_orders([unknown]))
            old_ownership = Ownership(stale.get_collection(ADDRESSES, read_concern=MAJORITY))
            await _decides_nothing(old_ownership.claim("103.181.91.1", "second", utc_now()))
    await members.caught_up()
    now = await orders.load([before.order_id, later.order_id])
    assert (now[before.order_id].status, now[before.order_id].version) == (Status.CANCELLED, 1)
    assert now[later.order_id] == later
    assert await ownership.owners(["103.181.91.1"]) == {"103.181.91.1": "first"}


async def _orders(mongo: Database) -> tuple[Orders, AnswerHandlers]:
    orders = Orders(mongo.get_collection(ORDERS, read_concern=MAJORITY))
    return orders, AnswerHandlers(orders, TIMEOUTS, utc_now)


@contextlib.asynccontextmanager
async def _connected_to(member: Member, name: str) -> AsyncIterator[Database]:
    """Connect like a process that knows no other member."""
    client = database.client(ServiceSettings(mongodb_url=member.url, database_timeout_seconds=3))
    try:
        yield client[name]
    finally:
        await database.close(client)


async def _decides_nothing(work: Awaitable[object]) -> None:
    """Expect an error after which a consumer, or whoever else asked, tries again."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - any of the driver's
        await work
    assert isinstance(database.translate_error(raised.value), TransientError), raised.value
