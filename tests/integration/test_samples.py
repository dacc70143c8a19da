"""Samples over a real MongoDB: each minute once over all processes, at the cost of its own orders, and on the page."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from operations.console import ConsoleDependencies
from operations.samples import sampling
from operations.samples.counting import by_end, placed_in
from operations.samples.records import SampleRecords
from operations.samples.sample import GOODS, MINUTE, Levels, QueueAge, Sample, Window, bucket_of, whole_minute
from operations.samples.sampling import Sampler
from operations.samples.schema import SCHEMA
from order_service.schema import SCHEMA as ORDER_SCHEMA
from shared import schema
from shared.database import Document
from shared.failpoints import SAMPLES_STORED, SimulatedCrashError
from tests.support.consoles import Clock, a_letter, console_dependencies, pages_of, record_letters

AGES = {"order.inbox": QueueAge(4.0), "order.retry.30s": QueueAge(29.0)}


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    clock = Clock()
    clock.now = whole_minute(clock.now)
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, clock=clock) as found:
        await schema.prepare(found.operations, SCHEMA)
        await schema.prepare(found.orders.database, {"orders": ORDER_SCHEMA["orders"]})
        yield found


@pytest.fixture
def clock(dependencies: ConsoleDependencies) -> Clock:
    assert isinstance(dependencies.clock, Clock)
    return dependencies.clock


def a_sampler(dependencies: ConsoleDependencies, **options: Any) -> Sampler:
    ages: Mapping[str, QueueAge] = AGES
    return Sampler(dependencies.operations, dependencies.orders, lambda: ages, dependencies.clock, **options)


async def take(dependencies: ConsoleDependencies, minutes: int = 0) -> list[Sample]:
    """Take the samples up to that many minutes from now, and return all that there are."""
    clock = dependencies.clock
    assert isinstance(clock, Clock)
    clock.now += minutes * MINUTE
    sampler = a_sampler(dependencies)
    while await sampler.look():
        pass
    return await SampleRecords(dependencies.operations).since(clock.now - timedelta(hours=2))


def an_order(order_id: str, placed: Any, **changes: Any) -> Document:
    order = {"_id": order_id, "status": "PENDING", "settled": False, "fulfilment": "goods", "createdAt": placed}
    return order | {"updatedAt": placed} | changes


async def test_orders_are_counted_in_the_minute_in_which_they_end(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    begin, second = clock.now - MINUTE, timedelta(seconds=1)
    clock.now += timedelta(seconds=20)
    confirmed = {"status": "CONFIRMED", "settled": True, "confirmedAt": begin + 2 * second}
    # Seen settled, but only after the end of the minute: it is counted in the next one.
    later = {"status": "CONFIRMED", "settled": True, "confirmedAt": begin + 62 * second}
    failed = {"status": "FAILED", "enteredAt": begin + 9 * second, "fulfilment": "vps"}
    await dependencies.orders.insert_many(
        [
            an_order("good", begin + second, **confirmed),
            an_order("later", begin + 58 * second, **later),
            an_order("failed", begin, **failed),
            an_order("slow", begin),
            an_order("old", begin - timedelta(days=3)),
        ]
    )
    await record_letters(dependencies, a_letter("o1"))
    first = (await take(dependencies))[-1]
    assert (first.at, first.accepted, first.settled, first.failed, first.cancelled) == (begin, 4, 1, 1, 0)
    assert first.latency == {GOODS: {bucket_of(1): 1}}
    assert first.levels == Levels(1, "order.inbox", 4.0), "what waits in a retry queue waits on purpose"
    cancelled = {"status": "CANCELLED", "settled": True, "updatedAt": begin + 90 * second}
    await dependencies.orders.update_one({"_id": "slow"}, {"$set": cancelled})
    await dependencies.orders.update_one({"_id": "old"}, {"$set": cancelled | {"status": "COMPLETED"}})
    *_, second_last, last = await take(dependencies, 1)
    assert second_last == first
    assert (last.accepted, last.settled, last.cancelled, last.failed) == (0, 3, 1, 0)
    assert last.latency[GOODS] == {bucket_of(4): 1, bucket_of(90): 1, bucket_of(3 * 86400 + 90): 1}


async def test_what_happened_while_no_console_ran_is_made_up_for(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    begin = clock.now
    assert len(await take(dependencies)) == 60, "the first samples are those of the last hour"
    done = {"status": "CONFIRMED", "settled": True}
    await dependencies.orders.insert_many(
        [
            an_order(f"o{n}", begin + n * MINUTE, **done, confirmedAt=begin + (n + 3) * MINUTE, fulfilment="goods")
            for n in range(20)
        ]
    )
    found = {sample.at: sample for sample in await take(dependencies, 30)}
    assert [found[begin + n * MINUTE].accepted for n in range(25)] == [1] * 20 + [0] * 5
    assert [found[begin + n * MINUTE].settled for n in range(25)] == [0] * 3 + [1] * 20 + [0] * 2
    assert found[begin + 5 * MINUTE].levels == Levels(), "nobody looked then"
    assert found[max(found)].levels.dead_letters == 0


async def test_orders_of_a_longer_gap_are_not_counted_late_and_the_samples_say_so(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    begin, done = clock.now, {"status": "CONFIRMED", "settled": True}
    await dependencies.orders.insert_one(an_order("before", begin - MINUTE))
    await take(dependencies)
    await dependencies.orders.insert_many([an_order(name, begin + 60 * MINUTE) for name in ("in-the-gap", "after")])
    for name, minutes in {"before": 30, "in-the-gap": 70}.items():
        ended = done | {"confirmedAt": begin + minutes * MINUTE}
        await dependencies.orders.update_one({"_id": name}, {"$set": ended})
    found = [sample for sample in await take(dependencies, 170) if sample.at >= begin + 100 * MINUTE]
    assert sum(sample.settled for sample in found) == 0, "what ended in the gap counts nowhere"
    assert not any(sample.complete for sample in found)
    ended = done | {"confirmedAt": begin + 175 * MINUTE}
    await dependencies.orders.update_one({"_id": "after"}, {"$set": ended})
    last = [sample for sample in await take(dependencies, 10) if sample.at >= begin + 170 * MINUTE]
    assert sum(sample.settled for sample in last) == 1, "what was open at the end of the gap is followed"
    assert all(sample.complete for sample in last)


async def test_orders_of_a_window_that_took_too_long_to_count_are_followed(
    dependencies: ConsoleDependencies, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await take(dependencies)
    begin = clock.now
    await dependencies.orders.insert_many([an_order(f"o{n}", begin) for n in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "COUNT_SECONDS", 0.000_001)
        assert [sample for sample in await take(dependencies, 2) if sample.at >= begin] == []
    done = {"status": "CONFIRMED", "settled": True, "confirmedAt": clock.now + timedelta(seconds=30)}
    await dependencies.orders.update_many({}, {"$set": done})
    found = [sample for sample in await take(dependencies, 3) if sample.at >= begin]
    assert sum(sample.settled for sample in found) == 3
    assert [sample.complete for sample in found][-1]


async def test_several_processes_count_each_minute_once_also_if_one_ends_in_between(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    await take(dependencies)
    done = {"status": "CONFIRMED", "settled": True, "confirmedAt": clock.now + timedelta(seconds=30)}
    await dependencies.orders.insert_one(an_order("o1", clock.now, **done))
    clock.now += 2 * MINUTE

    def crash(point: str) -> None:
        assert point == SAMPLES_STORED
        raise SimulatedCrashError(point)

    with pytest.raises(SimulatedCrashError):
        await a_sampler(dependencies, failpoint=crash).look()
    clock.now += MINUTE
    looks = await asyncio.gather(*(a_sampler(dependencies).look() for _ in range(4)))
    assert sum(looks) == 1, "one of them has recorded the minute"
    found = await take(dependencies)
    assert [sample.at for sample in found] == sorted({sample.at for sample in found})
    assert (sum(sample.accepted for sample in found), sum(sample.settled for sample in found)) == (1, 1)


async def test_a_minute_costs_as_much_as_its_own_orders(dependencies: ConsoleDependencies, clock: Clock) -> None:
    times = [clock.now - timedelta(seconds=10 * number) for number in range(3000)]
    statuses = ("PENDING", "CONFIRMED", "CANCELLED", "FAILED")
    await dependencies.orders.insert_many(
        [an_order(f"o{n}", at, status=statuses[n % 4], settled=n % 4 in (1, 2)) for n, at in enumerate(times)]
    )
    window = Window(clock.now - MINUTE, clock.now)
    command = {"aggregate": "orders", "pipeline": by_end(placed_in(window), window), "cursor": {}}
    explained = await dependencies.orders.database.command({"explain": command, "verbosity": "executionStats"})
    stages = explained.get("stages")
    statistics = stages[0]["$cursor"]["executionStats"] if stages else explained["executionStats"]
    assert statistics["totalDocsExamined"] == 6
    assert statistics["totalKeysExamined"] < 30


async def test_the_overview_draws_the_samples_for_those_who_may_see_them(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    async with pages_of(dependencies) as pages:
        assert "No data for the last hour yet." in (await pages.get("/")).text
    done = {"status": "CONFIRMED", "settled": True, "confirmedAt": clock.now - MINUTE + timedelta(seconds=2)}
    await dependencies.orders.insert_one(an_order("o1", clock.now - MINUTE, **done))
    clock.now += timedelta(seconds=15)
    await take(dependencies)
    async with pages_of(dependencies) as pages:
        for name in ("1h", "6h", "24h", "7d"):
            text = (await pages.get("/overview/charts", params={"range": name})).text
            assert text.count("<figure") == 5
            assert "accepted 1/min" in text or "accepted 0" in text
        assert "accepted 1/min, settled 1/min" in (await pages.get("/")).text
        refused = await pages.get("/", params={"range": "2y"})
        assert (refused.status_code, "must be one of 1h, 6h, 24h, 7d" in refused.text) == (422, True)
