"""The whole saga in one process over the in-memory bus and a real MongoDB, with faults drawn from a seed.

Messages are duplicated, delayed, reordered and lost with their connection; each service crashes between any two steps
and starts again; the provider's answers get lost; the broker loses all its messages. Clients hold stock, let it expire
while an order takes it over, and deliver orders while they refund parts of them. With half of the seeds, cards are
only authorised at first; captures are refused, and tried again or given up. Whatever the seed: every order settles,
stock is conserved, no customer is charged for nothing, no delivery slot is overbooked or kept for nothing, and the
provider has sold the servers of the orders that have one, and no others.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import httpx

import inventory_service.__main__ as inventory
import order_service.__main__ as order
import payment_service.__main__ as payment
import provisioning_service.__main__ as provisioning
from inventory_service.settings import InventorySettings
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings
from provisioning_service.settings import ProvisioningSettings
from shared import database
from shared.bus.consumer import Consumer
from shared.bus.memory import Faults, MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.database import Database
from shared.failpoints import SimulatedCrashError
from shared.http import create_app
from shared.service import Connections
from shared.services import INVENTORY, ORDER, PAYMENT, PROVISIONING, Service
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import connected, order_body
from tests.support.eventually import eventually
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.seeds import seeded
from tests.support.simulators import Simulator, package, run_simulator
from tests.support.tasks import end_tasks
from tests.support.violations import violations

ORDERS = 20
STOCK = 10
PREPAID = 60
"""The balance of the retainer: enough for some of the orders that are paid from it."""
ROOM = 25
"""The capacity of each delivery slot: two orders for 10, or one for 20."""
GONE_THROUGH = ("CONFIRMED", "COMPLETED")
CAPTURES = ("immediate", "on_confirm")
TOKENS = {
    "immediate": ("tok_ok", "tok_ok", "tok_ok", "tok_declined", "tok_timeout"),
    "on_confirm": (
        "tok_ok",
        "tok_ok",
        "tok_timeout",
        "tok_declined",
        "tok_capture_refused",
        "tok_authorization_expires",
    ),
}
LATELY = 4
"""The number of orders placed last, of which one is now and then tried again or given up."""
USERS = ("u1", "u1", "u2")
HELD_AT_ONCE = 3
"""The most holds that clients remember: the oldest, which expires next, is the one that is ordered."""
FAULTS = Faults(duplicate=0.15, reorder=0.3, delay=0.2, longest_delay=3, disconnect=0.03)
DATA_LOSS = 0.1
"""The number of times that the broker loses its messages between orders; it also does so after the last one."""
SERVICES: tuple[tuple[Service, Callable[..., Any], type[Any]], ...] = (
    (ORDER, order.assemble, OrderSettings),
    (INVENTORY, inventory.assemble, InventorySettings),
    (PAYMENT, payment.assemble, PaymentSettings),
    (PROVISIONING, provisioning.assemble, ProvisioningSettings),
)


class Player:
    """One service that crashes at random points, and is started again each time."""

    def __init__(self, broker: MemoryBroker, stored: Database, service: Any, settings: Any, rng: random.Random) -> None:
        self._broker = broker
        self._stored = stored
        self._definition, self._assemble, _ = service
        self._settings = settings
        self._rng = rng
        self.crash_probability = 0.02
        self.crashes = 0
        self.client: httpx.AsyncClient | None = None

    async def play(self) -> None:
        """Run until cancelled."""
        while True:
            crashed = asyncio.Event()
            bus = MemoryBus(self._broker)
            await bus.start(self._definition.inbox)
            parts = self._assemble(self._settings, Connections(self._stored, Publisher(bus), self._failpoint(crashed)))
            consumer = Consumer(
                bus,
                self._definition.inbox,
                parts.handlers,
                batch_limit=self._rng.choice((1, 3, 200)),
                failpoint=self._failpoint(crashed),
                translate_error=database.translate_error,
            )
            self.client = self._client(parts.router)
            tasks = [asyncio.create_task(work()) for work in (consumer.run, *parts.background)]
            try:
                await crashed.wait()
            finally:
                self.client = None
                bus.drop()
                await end_tasks(*tasks)
                await bus.close()
            self.crashes += 1

    def _failpoint(self, crashed: asyncio.Event) -> Callable[[str], None]:
        def failpoint(point: str) -> None:
            if crashed.is_set() or self._rng.random() < self.crash_probability:
                crashed.set()
                raise SimulatedCrashError(point)

        return failpoint

    def _client(self, router: Any) -> httpx.AsyncClient:
        async def ready() -> dict[str, str]:
            return {}

        app = create_app("simulated", "", ready, authenticator=key_authenticator())
        app.include_router(router)
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=5, headers=ADMIN
        )


@contextlib.asynccontextmanager
async def players(
    mongodb_url: str, prefix: str, seed: int, simulator: Simulator, card_capture: str
) -> AsyncIterator[tuple[MemoryBroker, list[Player]]]:
    rng = random.Random(seed)
    broker = MemoryBroker(seed, faults=FAULTS)
    async with contextlib.AsyncExitStack() as stack:
        playing: list[Player] = []
        for service in SERVICES:
            definition, _, settings_type = service
            stored = await stack.enter_async_context(connected(mongodb_url, f"{prefix}_{definition.database}"))
            settings = settings_type(**_settings(settings_type, simulator, card_capture))
            playing.append(Player(broker, stored, service, settings, random.Random(rng.random())))
        tasks = [asyncio.create_task(player.play()) for player in playing]
        try:
            yield broker, playing
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # not cancelled again: each has its own tasks to end


def _settings(settings_type: type[Any], simulator: Simulator, card_capture: str) -> dict[str, object]:
    """Return when cards are charged, and intervals so short that the test waits for no sweep and no lease."""
    quick = {
        "card_capture": card_capture,
        "republish_after_seconds": 0.2,
        "resend_after_seconds": 0.3,
        "sweep_interval_seconds": 0.05,
        "mark_sweep_seconds": 0.2,
        "hold_sweep_seconds": 0.05,
        "failed_hold_seconds": 0.2,
        **SHORT_DELAYS,
        "buy_timeout_seconds": 0.5,
        "lock_lease_seconds": 0.5,
        "buy_retry_delays": "0.02",
        **simulator.settings,
    }
    return {name: value for name, value in quick.items() if name in settings_type.model_fields}


@seeded(cost=7)
async def test_every_order_settles_despite_all_faults(seed: int, mongodb_url: str, database_prefix: str) -> None:
    rng = random.Random(seed)
    card_capture = CAPTURES[seed % len(CAPTURES)]
    async with (
        run_simulator() as simulator,
        players(mongodb_url, database_prefix, seed, simulator, card_capture) as (broker, playing),
    ):
        orders, stock, payments, _ = playing
        await _until_answered(stock, "PUT", "/inventory/p1", {"quantity": STOCK})
        await _until_answered(stock, "PUT", "/inventory/p2", {"quantity": STOCK})
        await _until_answered(stock, "PUT", "/products/vps", {"kind": "vps", "package": "103.181.91"})
        await _until_answered(stock, "PUT", "/slots/config", _slot_rules())
        slots = [slot["slotId"] for slot in (await _until_answered(stock, "GET", "/slots", None))["items"]]
        await simulator.packages([package("103.181.91", ORDERS)])
        await simulator.faults(buy={"loseAnswerNext": rng.choice((0, 2))})
        funding = {"clientId": "u1", "retainerType": "prepaid", "initialAmount": PREPAID}
        opened = await _until_answered(payments, "POST", "/api/retainers", funding, {"Idempotency-Key": f"{seed}"})
        retainer_id = opened["retainer"]["_id"]
        placed: list[str] = []
        holds: list[dict[str, Any]] = []
        for number in range(ORDERS):
            body = _body(rng, retainer_id, TOKENS[card_capture]) | _delivery(rng, slots)
            await _use_holds(rng, stock, slots, holds, f"hold-{number}")
            body |= _held(rng, holds)
            answer = await _until_answered(orders, "POST", "/orders", body, {"Idempotency-Key": f"{seed}-{number}"})
            placed.append(answer["orderId"])
            if rng.random() < 0.2:
                await _until_answered(orders, "POST", f"/orders/{placed[-1]}/cancel", {}, allowed=(202, 409))
            if rng.random() < 0.4:
                decision = f"/orders/{rng.choice(placed[-LATELY:])}/{rng.choice(('retry', 'retry', 'refund'))}"
                await _until_answered(orders, "POST", decision, {}, allowed=(202, 409))
            broker.advance(rng.random())
            if rng.random() < DATA_LOSS:
                broker.lose_data()
        broker.lose_data()
        fulfilled = [one for one in await _all_settled(broker, orders, placed) if one["status"] == "CONFIRMED"]
        await _deliver_and_refund_some(rng, broker, orders, fulfilled)
        settled = await _all_settled(broker, orders, placed)
        for player in playing:
            player.crash_probability = 0
        await _assert_books_balance(mongodb_url, database_prefix, settled)
        await _assert_slots_are_booked_by_what_went_through(mongodb_url, database_prefix, slots, settled)
        await _assert_retainer_has_the_rest(mongodb_url, database_prefix, retainer_id, settled)
        servers = [one["server"]["ip"] for one in settled if one["server"]]
        assert sorted(servers) == sorted(purchase["ip"] for purchase in await simulator.purchases())
        assert sum(player.crashes for player in playing) > 0


def _body(rng: random.Random, retainer_id: str, tokens: Sequence[str]) -> dict[str, Any]:
    token = rng.choice(tokens)
    payment = {"token": token} if rng.random() < 0.7 else {"method": "retainer", "retainerId": retainer_id}
    if rng.random() < 0.25:
        return order_body(items=[{"productId": "vps", "quantity": 1, "price": 10}], payment=payment)
    products = rng.sample(["p1", "p2"], rng.choice((1, 1, 2)))
    items = [{"productId": product, "quantity": rng.choice((1, 1, 2)), "price": 10} for product in products]
    return order_body(items=items, totalAmount=sum(10 * item["quantity"] for item in items), payment=payment)


async def _use_holds(
    rng: random.Random, stock: Player, slots: list[str], holds: list[dict[str, Any]], key: str
) -> None:
    """Make a hold now and then, and let others last longer, or end."""
    if rng.random() < 0.4:
        items = [{"productId": rng.choice(("p1", "p2")), "quantity": rng.choice((1, 2)), "price": 10}]
        asked = {"userId": rng.choice(USERS), "items": items, "ttlSeconds": 1}
        asked |= rng.choice(({}, {}, {"slot": "auto"}, {"slot": rng.choice(slots)}))
        answer = await _until_answered(
            stock, "POST", "/holds", asked, {"Idempotency-Key": key}, allowed=(200, 201, 409)
        )
        if "holdId" in answer:
            holds.append(answer)
        del holds[:-HELD_AT_ONCE]
    if holds and rng.random() < 0.15:
        hold_id = rng.choice(holds)["holdId"]
        if rng.random() < 0.5:
            await _until_answered(stock, "POST", f"/holds/{hold_id}/extend", {"ttlSeconds": 1}, allowed=(200, 409))
        else:
            await _until_answered(stock, "DELETE", f"/holds/{hold_id}", None, allowed=(204, 409))


def _held(rng: random.Random, holds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what some orders have of a hold: its id and mostly its user and its items."""
    if not holds or rng.random() < 0.4:
        return {"userId": rng.choice(USERS)}
    hold = holds.pop(0) if rng.random() < 0.8 else holds[0]  # in the latter case, another order may name it too
    user = hold["userId"] if rng.random() < 0.9 else rng.choice(USERS)
    items = [{**item, "price": 10} for item in hold["items"]]
    same = {"items": items, "totalAmount": sum(10 * item["quantity"] for item in items)}
    return {"holdId": hold["holdId"], "userId": user} | (same if rng.random() < 0.8 else {})


async def _deliver_and_refund_some(
    rng: random.Random, broker: MemoryBroker, orders: Player, fulfilled: list[dict[str, Any]]
) -> None:
    """Deliver some orders and refund parts of some, now and then more than is left, or both at the same moment.

    The broker loses its messages afterwards.
    """
    for number, one in enumerate(fulfilled * 2):
        path = f"/orders/{one['orderId']}"
        requests: list[tuple[str, Any, Any]] = []
        if rng.random() < 0.4:
            item = rng.choice(one["items"])
            lines = {"items": [{"productId": item["productId"], "quantity": 1}], "restock": rng.random() < 0.7}
            body = lines if rng.random() < 0.6 else {"amount": rng.choice((3, 7.5, 10))}
            requests.append((f"{path}/refunds", body, {"Idempotency-Key": f"refund-{number}"}))
        if rng.random() < 0.3:
            requests.append((f"{path}/deliver", None, None))
        rng.shuffle(requests)
        await asyncio.gather(*(_until_answered(orders, "POST", *each, allowed=(202, 409)) for each in requests))
        broker.advance(rng.random())
    broker.lose_data()


def _slot_rules() -> dict[str, Any]:
    """Two slots of a day, the first of which begins half a day from now: there is not enough room for all orders."""
    opening = (utc_now() + timedelta(hours=12)).strftime("%H:%M")
    times = {"durationMinutes": 1440, "openTime": opening, "closeTime": opening}
    return {**times, "capacity": ROOM, "horizonSlots": 2}


def _delivery(rng: random.Random, slots: list[str]) -> dict[str, Any]:
    """Return the delivery that some orders request: the earliest slot, or a certain one."""
    return rng.choice(({}, {"delivery": {"slot": "auto"}}, {"delivery": {"slot": rng.choice(slots)}}))


async def _until_answered(
    player: Player, method: str, path: str, body: Any, headers: Any = None, allowed: tuple[int, ...] = (200, 201, 202)
) -> dict[str, Any]:
    """Ask again until the service lives long enough to answer; that is why orders have idempotency keys."""
    answers: list[dict[str, Any]] = []
    patience = 0.5

    async def answered() -> bool:
        nonlocal patience
        assert player.client
        patience *= (
            1.2  # on a slow machine no answer may come within half a second, however often the request is repeated
        )
        try:
            async with asyncio.timeout(patience):
                response = await player.client.request(method, path, json=body, headers=headers)
        except SimulatedCrashError:
            return False  # a client sees a lost connection
        if response.status_code in allowed:
            answers.append(response.json() if response.content else {})
        return bool(answers)

    await eventually(answered, 90, f"{method} {path} to be answered")
    return answers[0]


async def _all_settled(broker: MemoryBroker, orders: Player, placed: list[str]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    async def settled() -> bool:
        broker.advance(5)
        for order_id in placed:
            if not found.get(order_id, {}).get("settled"):
                assert orders.client
                found[order_id] = (await orders.client.get(f"/orders/{order_id}")).json()
        return all(order.get("settled") for order in found.values())

    await eventually(settled, 120, "all orders to settle")
    return list(found.values())


async def _no_violations(mongodb_url: str, prefix: str) -> bool:
    assert await violations(mongodb_url, prefix) == []
    return True


async def _assert_books_balance(mongodb_url: str, prefix: str, orders: list[dict[str, Any]]) -> None:
    async with (
        connected(mongodb_url, f"{prefix}_inventory") as stock,
        connected(mongodb_url, f"{prefix}_payments") as payments,
    ):

        async def no_pending_moves() -> bool:
            return await stock["products"].find_one({"moving": {"$ne": {}}}) is None

        async def no_holds() -> bool:
            return await stock["reservations"].find_one({"hold": {"$exists": True}, "status": "RESERVED"}) is None

        await eventually(no_holds, 60, "the holds to end")
        await eventually(no_pending_moves, 60, "the pending moves to go")
        await eventually(partial(_no_violations, mongodb_url, prefix), 20, "the audit to pass")
        for product in ("p1", "p2"):
            returned = [
                item["quantity"]
                async for reservation in stock["reservations"].find({"returns": {"$exists": True}})
                for each in reservation["returns"]
                for item in each["items"]
                if item["productId"] == product
            ]
            sold = sum(
                item["quantity"]
                for one in orders
                if one["status"] in GONE_THROUGH
                for item in one["items"]
                if item["productId"] == product
            )
            document = await stock["products"].find_one({"_id": product})
            assert document
            assert document["quantity"] == STOCK - sold + sum(returned) >= 0
        charges = {c["_id"]: c async for c in payments["gateway_charges"].find()}
        prepaid = {p["_id"] async for p in payments["payments"].find({"retainerId": {"$exists": True}})}
        for one in orders:
            charge = charges.get(one["orderId"])
            taken = charge["outcome"] if charge and charge.get("refundedAt") is None else None
            by_card = one["orderId"] not in prepaid
            assert taken != "AUTHORIZED", (one, charge)
            assert (taken == "CHARGED") == (by_card and one["status"] in GONE_THROUGH), (one, charge)


async def _assert_slots_are_booked_by_what_went_through(
    mongodb_url: str, prefix: str, slots: list[str], orders: list[dict[str, Any]]
) -> None:
    """Check that each slot's load is the total of its successful orders, and within its capacity."""
    async with connected(mongodb_url, f"{prefix}_inventory") as stock:
        recorded = {slot["_id"]: slot async for slot in stock["products"].find({"kind": "slot"})}
    loads = {slot_id: slot["supplied"] - slot["quantity"] for slot_id, slot in recorded.items()}
    for slot_id in slots:
        booked = sum(one["totalAmount"] for one in orders if one["slot"] == slot_id and one["status"] in GONE_THROUGH)
        assert loads.get(slot_id, 0) == 100 * booked <= 100 * ROOM
    assert loads.keys() <= set(slots)


async def _assert_retainer_has_the_rest(
    mongodb_url: str, prefix: str, retainer_id: str, orders: list[dict[str, Any]]
) -> None:
    """Check that the retainer was charged exactly for the successful orders that were paid from it."""
    async with connected(mongodb_url, f"{prefix}_payments") as payments:
        prepaid = {p["_id"] async for p in payments["payments"].find({"retainerId": retainer_id})}
        paid = [one for one in orders if one["orderId"] in prepaid and one["status"] in GONE_THROUGH]
        spent = sum(one["totalAmount"] - one["refundedAmount"] for one in paid)
        account = await payments["accounts"].find_one({"_id": f"retainer:{retainer_id}"})
        assert account
        assert account["balance"] == 100 * (PREPAID - spent) >= 0
