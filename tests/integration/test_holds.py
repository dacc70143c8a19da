"""Holds: an order takes over what is held, and an expired hold comes back once."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from operator import attrgetter

import pytest

from inventory_service.allocation import HoldLine
from inventory_service.holds import HoldRequest
from inventory_service.stock import HoldOutcome, Reservation, Status
from shared.clock import utc_now
from shared.contracts import OrderCreated, StockReserved
from shared.database import Database
from shared.failpoints import (
    HOLD_CLAIMED,
    HOLD_ENDED,
    RESERVATION_RECORDED,
    STOCK_MOVED,
    SimulatedCrashError,
)
from tests.support.inventory_worker import (
    Gate,
    HandClock,
    Lines,
    Worker,
    crash_at,
    empty,
    order,
    refused,
    reserved,
    settle_everything,
    shared_database,
    unsettled_records,
    watched,
)
from tests.support.memory_databases import MEMORY, MONGODB
from tests.support.seeds import seeded
from tests.support.servers import Servers

ONE: Lines = {"a": 1}
BOTH: Lines = {"a": 2, "b": 3}
FULL: Lines = {"a": 2, "b": 3}
"""Nothing is free while BOTH is held."""

_log = logging.getLogger(__name__)


@pytest.fixture(scope="module", params=[MONGODB, MEMORY])
async def databases(servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[list[Database]]:
    async with shared_database(MEMORY if request.param == MEMORY else servers.mongodb_url, clients=2) as found:
        yield found


@pytest.fixture
def clock() -> HandClock:
    return HandClock(utc_now().replace(microsecond=0))


@pytest.fixture
async def workers(databases: list[Database], clock: HandClock) -> list[Worker]:
    await empty(databases[0])
    found = [Worker(db, clock=clock) for db in databases]
    await found[0].stock(FULL)
    return found


def doomed(worker: Worker, clock: HandClock, point: str) -> Worker:
    """A worker that dies at the point."""
    return Worker(worker.database, failpoint=crash_at(point), clock=clock)


async def hold(
    worker: Worker,
    lines: Lines,
    hold_id: str = "h",
    *,
    user: str = "u",
    owner: str | None = None,
    slot: str | None = None,
    seconds: int = 60,
    price: int | None = None,
) -> Reservation:
    asked = tuple(HoldLine(product_id, quantity, price) for product_id, quantity in lines.items())
    placed = await worker.holds.place([HoldRequest(hold_id, owner, user, asked, slot, seconds)])
    assert placed[0] is not None
    return placed[0]


def with_hold(order_id: str, lines: Lines, hold_id: str = "h", **options: object) -> OrderCreated:
    return order(order_id, lines, **options).model_copy(update={"hold_id": hold_id})  # type: ignore[arg-type]


async def of(worker: Worker, hold_id: str = "h") -> Reservation:
    found = await worker.holds.find(hold_id, {})
    assert found is not None
    return found


async def outcome(worker: Worker, hold_id: str = "h") -> HoldOutcome | None:
    found = await of(worker, hold_id)
    assert found.hold is not None
    return found.hold.outcome


async def free(worker: Worker) -> Lines:
    return {product_id: await worker.free(product_id) for product_id in FULL}


async def assert_settled(workers: Sequence[Worker], clock: HandClock) -> None:
    await settle_everything(workers, clock)
    assert await unsettled_records(workers[0].database) == []


async def test_what_is_held_is_not_free_and_an_order_takes_it_over(workers: list[Worker], clock: HandClock) -> None:
    assert (await hold(workers[0], BOTH)).status is Status.RESERVED
    assert await free(workers[0]) == {"a": 0, "b": 0}
    assert refused(await workers[1].reserve(order("other", {"a": 1}).model_copy(update={"user_id": "v"})))

    assert await workers[1].reserve(with_hold("o", BOTH)) == [StockReserved(order_id="o")]

    assert (await outcome(workers[0]), await used(workers[0], "o")) == (HoldOutcome.TAKEN, "TAKEN")
    assert (await of(workers[0])).status is Status.RELEASED
    assert await free(workers[0]) == {"a": 0, "b": 0}
    await assert_settled(workers, clock)
    await workers[0].release("o")
    assert await free(workers[0]) == FULL


async def test_a_hold_that_does_not_fit_leaves_nothing_behind(workers: list[Worker], clock: HandClock) -> None:
    answer = await hold(workers[0], {"a": 1, "b": 4})
    assert (answer.status, answer.failure_reason) == (Status.FAILED, "Insufficient stock for b: asked 4, free 3")
    assert await workers[0].reservations.read(["hold:h"]) == {}
    await assert_settled(workers, clock)


async def test_units_beyond_the_hold_are_reserved_as_usual_and_the_rest_of_it_comes_back(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], {"a": 1, "b": 3})
    assert reserved(await workers[0].reserve(with_hold("o", {"a": 2})))
    assert await free(workers[0]) == {"a": 0, "b": 3}
    await assert_settled(workers, clock)


async def test_an_order_that_is_refused_returns_its_hold(workers: list[Worker], clock: HandClock) -> None:
    await hold(workers[0], BOTH)
    assert refused(await workers[0].reserve(with_hold("o", {"a": 3})))
    assert await free(workers[0]) == FULL
    await assert_settled(workers, clock)


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        ({"hold_id": "nothing"}, "UNKNOWN"),
        ({"user_id": "v"}, "UNKNOWN"),
        ({"owner_id": "rival"}, "UNKNOWN"),
    ],
)
async def test_a_hold_that_is_not_the_orders_is_left_alone_and_noted(
    workers: list[Worker], clock: HandClock, change: dict[str, str], noted: str
) -> None:
    await hold(workers[0], {"a": 1})
    assert reserved(await workers[0].reserve(with_hold("o", {"a": 1}).model_copy(update=change)))
    assert (await outcome(workers[0]), await used(workers[0], "o")) == (None, noted)
    assert await free(workers[0]) == {"a": 0, "b": 3}
    await assert_settled(workers, clock)


async def test_a_second_order_does_not_get_what_the_first_has_taken_over(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], {"a": 1})
    both = await asyncio.gather(
        workers[0].reserve(with_hold("o", {"a": 1})), workers[1].reserve(with_hold("p", {"a": 1}))
    )
    assert [reserved(answers) for answers in both] == [{"o"}, {"p"}]
    assert {await used(workers[0], "o"), await used(workers[0], "p")} == {"TAKEN", "USED"}
    assert await free(workers[0]) == {"a": 0, "b": 3}
    await assert_settled(workers, clock)


async def test_an_order_of_the_same_user_is_not_blocked_by_holds_that_it_does_not_name(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], {"a": 1}, "h1")
    await hold(workers[0], {"a": 1, "b": 3}, "h2")
    assert reserved(await workers[1].reserve(order("o", BOTH)))
    assert await used(workers[0], "o") == "TAKEN"
    assert await free(workers[0]) == {"a": 0, "b": 0}
    await assert_settled(workers, clock)


async def test_an_expired_hold_comes_back_once(workers: list[Worker], clock: HandClock) -> None:
    await hold(workers[0], BOTH, seconds=60)
    await workers[0].holds.sweep_once()
    assert await free(workers[0]) == {"a": 0, "b": 0}

    clock.forward(seconds=60)
    await asyncio.gather(*(worker.holds.sweep_once() for worker in workers for _ in range(3)))

    assert await free(workers[0]) == FULL
    assert (await of(workers[0])).status is Status.RELEASED
    await assert_settled(workers, clock)
    assert reserved(await workers[0].reserve(with_hold("o", BOTH)))
    assert await used(workers[0], "o") == "EXPIRED"


async def test_an_order_is_served_although_its_hold_has_just_expired_and_nothing_else_is_free(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], BOTH, seconds=60)
    clock.forward(seconds=60)
    assert reserved(await workers[1].reserve(with_hold("o", BOTH)))
    assert (await outcome(workers[0]), await used(workers[0], "o")) == (HoldOutcome.EXPIRED, "EXPIRED")
    await assert_settled(workers, clock)


async def test_an_extended_hold_outlives_its_first_expiry(workers: list[Worker], clock: HandClock) -> None:
    await hold(workers[0], BOTH, seconds=60)
    clock.forward(seconds=59)
    assert await workers[1].holds.extend("h", 60, {})
    clock.forward(seconds=59)
    await workers[0].holds.sweep_once()
    assert await outcome(workers[0]) is None
    clock.forward(seconds=1)
    await workers[0].holds.sweep_once()
    assert not await workers[1].holds.extend("h", 60, {})
    assert await free(workers[0]) == FULL


async def test_a_cancelled_order_that_arrives_late_does_not_use_up_its_hold(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], BOTH)
    await workers[0].release("o")
    await workers[1].reserve(with_hold("o", BOTH))
    assert await outcome(workers[0]) is None
    await assert_settled(workers, clock)


async def test_a_redelivered_order_gets_the_same_answer(workers: list[Worker], clock: HandClock) -> None:
    await hold(workers[0], BOTH)
    for worker in (*workers, *workers):
        assert await worker.reserve(with_hold("o", BOTH)) == [StockReserved(order_id="o")]
    await workers[0].release("o")
    assert await free(workers[0]) == FULL
    await assert_settled(workers, clock)


async def test_the_slot_of_a_hold_counts_and_is_the_orders(workers: list[Worker], clock: HandClock) -> None:
    await workers[0].slot_rules(capacity=1000, horizon=2)
    held = await hold(workers[0], {"a": 2}, slot="auto", price=400)
    assert held.booking is not None
    slot = held.booking.slot_id
    assert await workers[0].loads() == {slot: 800}
    # Another order cannot have the room; this one gets it, at its own price, rather than the next slot.
    assert slot != (await _slot_after(workers[1], order("x", {"b": 1}, price=3, slot="auto")))
    assert reserved(await workers[1].reserve(with_hold("o", {"a": 2}, price=5, slot="auto")))
    assert await workers[0].slot_of("o") == slot
    assert (await workers[0].loads())[slot] == 1000
    await assert_settled(workers, clock)


async def _slot_after(worker: Worker, asked: OrderCreated) -> str | None:
    await worker.reserve(asked)
    return await worker.slot_of(asked.order_id)


async def test_an_expired_hold_frees_its_slot(workers: list[Worker], clock: HandClock) -> None:
    await workers[0].slot_rules(capacity=1000, horizon=2)
    await hold(workers[0], {"a": 2}, slot="auto", price=400)
    clock.forward(seconds=60)
    await workers[1].holds.sweep_once()
    assert set((await workers[0].loads()).values()) == {0}
    await assert_settled(workers, clock)


# --- The limit of open holds per user. ---


async def place_each(workers: Sequence[Worker], hold_ids: Sequence[str], lines: Lines = ONE) -> list[str]:
    """Request holds at the same moment, by turns of different workers; return those that are held."""
    asked = tuple(HoldLine(product_id, quantity) for product_id, quantity in lines.items())
    answers = await asyncio.gather(
        *(
            workers[n % len(workers)].holds.place([HoldRequest(hold_id, None, "u", asked, None, 60)])
            for n, hold_id in enumerate(hold_ids)
        )
    )
    held = [answer is not None and answer.status is Status.RESERVED for (answer,) in answers]
    return [hold_id for hold_id, is_held in zip(hold_ids, held, strict=True) if is_held]


@pytest.fixture
async def limited(workers: list[Worker], clock: HandClock) -> list[Worker]:
    """Workers that allow three holds per user; there is stock for many."""
    await workers[0].stock({"a": 100})
    return [Worker(worker.database, clock=clock, max_holds=3) for worker in workers]


async def test_no_user_gets_more_holds_than_allowed_nor_fewer(limited: list[Worker], clock: HandClock) -> None:
    for attempt in range(3):
        held = await place_each(limited, [f"{attempt}-{n}" for n in range(50)])
        assert len(held) == 3
        assert await limited[0].free("a") == 97
        assert not await place_each(limited, [f"{attempt}-late"])
        await limited[1].holds.delete(held[0], {})
        assert len(await place_each(limited, [f"{attempt}-{n}-again" for n in range(10)])) == 1
        clock.forward(seconds=60)
        await limited[attempt % 2].holds.sweep_once()
        assert await limited[0].free("a") == 100
    await assert_settled(limited, clock)


async def test_holds_that_do_not_fit_leave_room_for_others(limited: list[Worker]) -> None:
    assert not await place_each(limited, [f"large-{n}" for n in range(10)], {"a": 101})
    assert len(await place_each(limited, [f"{n}" for n in range(10)])) == 3


async def test_repeated_requests_of_a_hold_count_once(limited: list[Worker]) -> None:
    assert set(await place_each(limited, ["k", "k", "l", "k", "l", "k"])) == {"k", "l"}
    assert len(await place_each(limited, ["m", "k", "n"])) == 2
    assert await limited[0].free("a") == 97


async def test_a_killed_request_takes_a_place_for_seconds_only(limited: list[Worker], clock: HandClock) -> None:
    dying = Worker(limited[0].database, failpoint=crash_at(STOCK_MOVED), clock=clock, max_holds=3)
    with pytest.raises(SimulatedCrashError):
        await hold(dying, ONE, "lost")
    assert len(await place_each(limited, ["1", "2", "3"])) == 2
    clock.forward(seconds=11)
    assert len(await place_each(limited, ["4", "5"])) == 1
    await assert_settled(limited, clock)
    assert await limited[0].free("a") == 97


async def test_a_request_that_stalled_for_too_long_does_not_come_true(limited: list[Worker], clock: HandClock) -> None:
    stalled = Worker(limited[0].database, clock=clock, max_holds=3)
    gate = Gate(stalled.reservations, "insert")
    late = asyncio.create_task(hold(stalled, ONE, "late"))
    await gate.reached()
    clock.forward(seconds=11)
    assert len(await place_each(limited, ["1", "2", "3", "4"])) == 3
    gate.open()
    assert (await late).status is Status.RELEASED
    await assert_settled([*limited, stalled], clock)
    assert await limited[0].free("a") == 97


async def test_holds_of_a_release_without_lists_count(limited: list[Worker]) -> None:
    assert len(await place_each(limited, ["1", "2"])) == 2
    await limited[0].database["hold_lists"].delete_many({})
    assert len(await place_each(limited, [f"{n}-new" for n in range(10)])) == 1


# --- Races: each has one winner. ---


@seeded()
async def test_expiry_deletion_extension_and_orders_race(workers: list[Worker], clock: HandClock, seed: int) -> None:
    """The hold ends once, and what is free or out is exact, in whatever order the steps of two workers come."""
    chance = random.Random(seed)
    workers = [Worker(worker.database, clock=clock) for worker in workers]
    await hold(workers[0], BOTH, seconds=60)
    clock.forward(seconds=60, milliseconds=-chance.choice((0, 1, 3)))
    for worker in workers:
        for target, methods in STEPS.items():
            for method in methods:
                stall(attrgetter(target)(worker), method, chance, clock)
    first, second = chance.sample(workers, 2)
    racers: list[Awaitable[object]] = [first.reserve(with_hold("o", BOTH)), second.holds.sweep_once()]
    if chance.random() < 0.5:
        racers.append(second.holds.delete("h", {}))
    if chance.random() < 0.3:
        racers.append(first.holds.extend("h", 60, {}))
    if chance.random() < 0.3:
        racers.append(second.reserve(with_hold("o", BOTH)))
    if chance.random() < 0.5:
        racers.append(second.reserve(with_hold("p", BOTH)))
    chance.shuffle(racers)
    await asyncio.gather(*racers)
    clock.forward(seconds=120)
    await first.holds.sweep_once()
    await assert_settled(workers, clock)
    held = [each for each in ("o", "p") if await first.status(each) == Status.RESERVED]
    assert len(held) <= 1
    assert await free(first) == ({"a": 0, "b": 0} if held else FULL)
    ended = await of(first)
    assert ended.status is Status.RELEASED
    assert ended.hold is not None
    taken = [each for each in ("o", "p") if await used(first, each) == "TAKEN"]
    assert taken == ([ended.hold.order_id] if ended.hold.outcome is HoldOutcome.TAKEN else [])
    assert not taken or held == taken


STEPS = {
    "reservations": ("read", "insert", "decisions", "mark"),
    "reservations.holds": ("claim", "claim_own", "expire", "due", "delete", "extend"),
    "stock_items": ("read", "write"),
}
"""The reads and writes before which a worker may stall, by object."""


async def test_an_order_that_comes_twice_as_its_hold_expires_agrees_with_the_hold(
    workers: list[Worker], clock: HandClock
) -> None:
    await hold(workers[0], BOTH, seconds=60)
    in_time = Worker(workers[0].database, clock=HandClock(clock.now))
    clock.forward(seconds=60)
    gate = Gate(workers[1].reservations.holds, "expire")
    late = asyncio.create_task(workers[1].reserve(with_hold("o", BOTH)))
    await gate.reached()
    claims = await in_time.holds.claim([with_hold("o", BOTH)])
    assert claims.ids()
    gate.open()
    await late
    ended = await of(workers[1])
    assert ended.hold is not None
    assert (ended.hold.outcome, await used(workers[1], "o")) == (HoldOutcome.TAKEN, "TAKEN")
    await assert_settled(workers, clock)


async def test_a_hold_that_is_extended_while_an_order_finds_it_expired_is_taken(
    workers: list[Worker], clock: HandClock
) -> None:
    """The process that extends it is behind by less than the order takes."""
    await hold(workers[0], BOTH, seconds=60)
    behind = Worker(workers[0].database, clock=HandClock(clock.now))
    clock.forward(seconds=60)
    gate = Gate(workers[1].reservations, "read")
    late = asyncio.create_task(workers[1].reserve(with_hold("o", BOTH)))
    await gate.reached()
    assert await behind.holds.extend("h", 120, {})
    gate.open()
    await late
    ended = await of(workers[1])
    assert ended.hold is not None
    assert (ended.hold.outcome, ended.hold.order_id) == (HoldOutcome.TAKEN, "o")
    assert await used(workers[1], "o") == "TAKEN"
    await assert_settled(workers, clock)


def stall(target: object, method: str, chance: random.Random, clock: HandClock) -> None:
    """Let every call of the method wait for a random while, in which others go on and time passes."""
    original = getattr(target, method)

    async def stalled(*args: object, **options: object) -> object:
        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))
        clock.forward(milliseconds=chance.choice((0, 1)))
        return await original(*args, **options)

    setattr(target, method, stalled)


async def used(worker: Worker, order_id: str) -> str | None:
    """Return what became of the hold that an order named, None if it has no reservation."""
    found = (await worker.reservations.read([order_id])).get(order_id)
    return found.used_hold.outcome if found is not None and found.used_hold is not None else None


# --- Crashes. ---


@pytest.mark.parametrize("point", [HOLD_CLAIMED, STOCK_MOVED, RESERVATION_RECORDED])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
async def test_an_order_with_a_hold_whose_worker_died_is_reserved_once(
    workers: list[Worker], clock: HandClock, point: str, nth: int, named: bool
) -> None:
    await hold(workers[0], BOTH)
    asked = with_hold("o", BOTH) if named else order("o", BOTH)
    dying = Worker(workers[0].database, failpoint=crash_at(point, nth), clock=clock)
    try:
        await dying.reserve(asked)
    except SimulatedCrashError:
        assert (await workers[1].holds.find("h", {})) is not None
    # The hold's time is over in the meantime; the claim stands.
    clock.forward(seconds=61)
    await workers[1].holds.sweep_once()

    assert await workers[1].reserve(asked) == [StockReserved(order_id="o")]

    clock.forward(seconds=10)
    await workers[1].holds.sweep_once()
    assert await free(workers[1]) == {"a": 0, "b": 0}
    assert ((await of(workers[1])).status, await outcome(workers[1])) == (Status.RELEASED, HoldOutcome.TAKEN)
    await assert_settled([workers[1]], clock)


@pytest.mark.parametrize("point", [HOLD_ENDED, STOCK_MOVED, RESERVATION_RECORDED])
@pytest.mark.parametrize("how", ["expiry", "deletion"])
async def test_a_hold_whose_end_was_interrupted_comes_back_once(
    workers: list[Worker], clock: HandClock, point: str, how: str
) -> None:
    await hold(workers[0], BOTH)
    dying = doomed(workers[0], clock, point)
    if how == "expiry":
        clock.forward(seconds=60)
    with pytest.raises(SimulatedCrashError):
        await (dying.holds.delete("h", {}) if how == "deletion" else dying.holds.sweep_once())

    clock.forward(seconds=2)
    await workers[1].holds.sweep_once()

    assert await free(workers[1]) == FULL
    await assert_settled([workers[1]], clock)


@pytest.mark.parametrize("point", [STOCK_MOVED, RESERVATION_RECORDED])
async def test_units_of_a_hold_that_was_never_answered_come_back(
    workers: list[Worker], clock: HandClock, point: str
) -> None:
    dying = doomed(workers[0], clock, point)
    with pytest.raises(SimulatedCrashError):
        await hold(dying, BOTH)
    clock.forward(seconds=61)
    await workers[1].holds.sweep_once()
    await assert_settled([workers[1]], clock)
    assert await free(workers[1]) == FULL


@pytest.mark.parametrize("point", [HOLD_CLAIMED, STOCK_MOVED, RESERVATION_RECORDED])
async def test_an_order_cancelled_after_its_worker_died_returns_the_hold(
    workers: list[Worker], clock: HandClock, point: str
) -> None:
    await hold(workers[0], BOTH)
    with pytest.raises(SimulatedCrashError):
        await doomed(workers[0], clock, point).reserve(with_hold("o", BOTH))
    await workers[1].release("o", lines=BOTH)
    clock.forward(seconds=10)
    await workers[1].holds.sweep_once()
    assert await free(workers[1]) == FULL
    await assert_settled([workers[1]], clock)


# --- Many. ---


async def test_holds_that_expire_under_load_leave_the_stock_exact(databases: list[Database]) -> None:
    """`make test-holds` runs it with 10,000 holds."""
    number, products = int(os.environ.get("HOLDS", "500")), 10
    is_measuring = number > 1000
    await empty(databases[0])
    workers = [Worker(db) for db in databases]
    each = number // products
    await workers[0].stock({f"p{n}": each + 50 for n in range(products)})
    requests = [
        HoldRequest(f"h{n}", None, f"u{n}", (HoldLine(f"p{n % products}", 1),), None, seconds=600)
        for n in range(number)
    ]
    background = [asyncio.create_task(worker.holds.sweep(0.1)) for worker in workers]
    background += [asyncio.create_task(worker.pending_moves.flush()) for worker in workers]
    try:
        for start in range(0, number, 200):
            await workers[0].holds.place(requests[start : start + 200])
        # Reading all records again and again would be most of the work: with so many, the end is checked only.
        async with nullcontext() if is_measuring else watched(databases[0]):
            expiry = await let_all_expire(databases[0])
            taken = 0
            while await databases[0]["reservations"].find_one({"status": "RESERVED", "hold.dueAt": {"$exists": True}}):
                orders = [order(f"o{taken}-{n}", {f"p{n}": 1}) for n in range(products)]
                await workers[taken % 2].reserve(*(each.model_copy(update={"user_id": "v"}) for each in orders))
                taken += 1
                assert utc_now() < expiry + timedelta(minutes=1)
            came_back = (utc_now() - expiry).total_seconds()
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    await settle_everything(workers)
    assert await unsettled_records(databases[0]) == []
    reserved_units = await databases[0]["reservations"].count_documents({"status": "RESERVED"})
    assert sum([await workers[0].free(f"p{n}") for n in range(products)]) == products * (each + 50) - reserved_units
    outcomes = await databases[0]["reservations"].count_documents({"hold.outcome": "EXPIRED", "status": "RELEASED"})
    assert outcomes == number
    _log.info("%d holds expired at once: the last came back after %.2f s", number, came_back)


async def let_all_expire(db: Database) -> datetime:
    """Let all holds expire at the same moment, in a second; return the moment."""
    expiry = utc_now() + timedelta(seconds=1)
    await db["reservations"].update_many({}, {"$set": {"hold.expiresAt": expiry, "hold.dueAt": expiry}})
    return expiry
