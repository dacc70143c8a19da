"""The parts of the simulation: its loop, its clocks and its plans, its shrinking and its report."""

import asyncio
import inspect
import random
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from pymongo.errors import NotPrimaryError
from pymongo.read_concern import ReadConcern

from shared import clock
from shared.memory_database import MemoryDatabase
from simulation import plan, processes, report, shrinking, world
from simulation.coverage import Met
from simulation.entropy import BEGINNING, seeded
from simulation.faults import Injector
from simulation.logs import logging_to
from simulation.loop import Life, SimulatedLoop, StuckError
from simulation.plan import Fault, Plan
from simulation.runner import SeedResult, Summary
from simulation.trace import Trace
from simulation.world import Outcome


def run(work: Coroutine[Any, Any, Any], loop: SimulatedLoop | None = None) -> Any:
    loop = loop or SimulatedLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.bury()
        loop.close()


def outcome(of: Plan, *violations: str) -> Outcome:
    return Outcome(of, "0" * 64, violations, ("a step", "another step"), of.faults, 0, 1.0)


def test_hours_pass_at_once_and_in_their_order() -> None:
    passed: list[int] = []

    async def wait(hours: int) -> None:
        await asyncio.sleep(hours * 3600)
        passed.append(hours)

    async def work() -> float:
        await asyncio.gather(wait(3), wait(1), wait(2))
        return asyncio.get_running_loop().time()

    assert run(work()) == 3 * 3600
    assert passed == [1, 2, 3]


def test_work_that_waits_for_nothing_is_stuck() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError):
        run(work())


def test_work_that_lets_no_time_pass_is_stuck() -> None:
    async def work() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(StuckError):
        run(work())


def test_what_a_killed_process_would_still_do_is_closed_with_its_loop() -> None:
    """Its `finally` blocks run then, and what they start must not run in a loop of its own."""
    left: list[Coroutine[Any, Any, Any]] = []

    async def end_session() -> None:
        await asyncio.sleep(1)

    async def transaction() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(end_session())
            await asyncio.shield(asyncio.ensure_future(left[-1]))

    async def work() -> None:
        killed = Life("payment-1")
        left.append(transaction())
        killed.start(left[-1])
        await asyncio.sleep(1)
        killed.ended = True

    run(work())
    assert [inspect.getcoroutinestate(each) for each in left] == [inspect.CORO_CLOSED] * 2


def test_a_task_from_an_awaitable_is_closed_as_well() -> None:
    class Waits:
        def __await__(self) -> Any:
            return asyncio.Event().wait().__await__()

    async def work() -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(Waits())
        await asyncio.sleep(1)
        return task

    assert inspect.getgeneratorstate(run(work()).get_coro()) == inspect.GEN_CLOSED


def test_a_majority_confirms_what_a_process_wrote_before_it_was_killed() -> None:
    """Found by seed 219: what nobody confirmed blocked every later write that changed nothing."""
    database = MemoryDatabase("inventory", clock=clock.utc_now, replication_lag=lambda: 0.5)

    async def work() -> None:
        killed = Life("inventory-1")
        killed.start(database["products"].insert_one({"_id": "lamp"}))
        await asyncio.sleep(0.1)
        killed.ended = True
        await database["products"].update_one({"_id": "a chair"}, {"$set": {"quantity": 1}})  # waits for a majority
        confirmed = database.get_collection("products", read_concern=ReadConcern("majority"))
        assert await confirmed.find_one({"_id": "lamp"}) == {"_id": "lamp"}

    run(work())


async def fail() -> None:
    raise TypeError("a defect")


def test_errors_that_nobody_sees_are_failures_unless_their_life_has_ended() -> None:
    async def work() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.call_at(1, lambda: [][0])
        tasks = [asyncio.create_task(fail()), asyncio.create_task(fail())]
        alive, ended = Life("a process"), Life("another")
        alive.start(fail())
        ended.start(fail())
        await asyncio.sleep(2)
        ended.ended = True
        assert isinstance(tasks[0].exception(), TypeError)  # seen
        return list(loop.failures())

    callback, *failed = run(work())
    assert callback == "a callback failed: IndexError('list index out of range')"
    assert failed == ["a task failed: TypeError('a defect') in fail"] * 2


def logged_by(life: Life | None, *lines: tuple[str, str, dict[str, Any]]) -> list[str]:
    """Return the defects that these lines of a log show."""
    with logging_to(Trace(lambda: 0.0)) as logs:
        for level, event, about in lines:
            log = getattr(structlog.get_logger(), level)
            if life is None:
                log(event, **about)
            else:
                life.context.run(log, event, **about)
    return list(logs.defects)


def test_an_unexpected_error_in_the_log_is_a_defect_and_told_once() -> None:
    failed = ("error", "background work failed", {"work": "sweeping", "error": "TypeError: no"})
    request = ("error", "request failed", {"exc_info": KeyError("total")})
    retried = ("warning", "message retried", {"error_type": "NotImplementedError", "error": "cursor.skip"})
    assert logged_by(Life("order-1"), failed, failed, request, retried) == [
        "defect, background work failed: order-1:  work=sweeping error=TypeError: no",
        "defect, request failed: order-1: KeyError('total')",
        "defect, message retried: order-1: NotImplementedError error=cursor.skip",
    ]


def test_what_faults_cause_in_the_log_is_no_defect() -> None:
    waits = ("warning", "message retried", {"error_type": "NewerOrderError"})
    away = ("warning", "background work waits for a server", {"error": "AutoReconnect"})
    late: tuple[str, str, dict[str, Any]] = ("error", "payment still without an outcome", {})
    assert logged_by(None, waits, away, late) == []
    ended = Life("order-1")
    ended.ended = True
    assert logged_by(ended, ("error", "background work failed", {})) == []


def test_an_operator_tries_again_while_the_database_is_away() -> None:
    answers: list[Exception | None] = [NotPrimaryError("not primary"), None]

    async def change() -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    run(world._until_done(change))
    assert answers == []


def test_work_that_ends_by_itself_is_an_error() -> None:
    async def work() -> None:
        return

    with pytest.raises(RuntimeError, match="work has ended"):
        run(processes._forever(work))


def test_there_are_no_threads() -> None:
    async def work() -> None:
        await asyncio.to_thread(time.sleep, 0)

    with pytest.raises(RuntimeError, match="no threads"):
        run(work())


def test_a_life_that_has_ended_runs_no_further_not_even_its_finally_blocks() -> None:
    steps: list[str] = []

    async def live() -> None:
        try:
            steps.append("begun")
            await asyncio.sleep(1)
            steps.append("gone on")
        finally:
            steps.append("tidied up")

    async def work() -> list[str]:
        life = Life("a process")
        life.start(live())
        await asyncio.sleep(0.5)
        life.ended = True
        await asyncio.sleep(5)
        return list(steps)

    assert run(work()) == ["begun"]


def test_a_life_that_is_stalled_goes_on_where_it_was() -> None:
    seen: list[float] = []

    async def live() -> None:
        await asyncio.sleep(1)
        seen.append(asyncio.get_running_loop().time())

    async def work() -> None:
        life = Life("a process")
        life.start(live())
        await asyncio.sleep(0.5)
        life.stalled = True
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.call_at(60, loop.go_on, life)
        await asyncio.sleep(90)

    run(work())
    assert seen == [60]


def test_a_task_with_a_context_of_its_own_belongs_to_the_life_that_made_it() -> None:
    from contextvars import Context

    steps: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1)
        steps.append("gone on")

    async def live() -> None:
        asyncio.get_running_loop().create_task(child(), context=Context())

    async def work() -> None:
        life = Life("a process")
        life.start(live())
        await asyncio.sleep(0.5)
        life.ended = True
        await asyncio.sleep(5)

    run(work())
    assert steps == []


def test_time_and_chance_come_from_the_seed_and_are_given_back() -> None:
    def drawn(seed: int) -> tuple[Any, ...]:
        loop = SimulatedLoop()
        try:
            with seeded(seed, loop):
                found = (uuid.uuid4(), secrets.token_hex(4), random.random(), time.time(), clock.utc_now())
        finally:
            loop.close()
        return found

    assert drawn(1) == drawn(1)
    assert drawn(1)[:3] != drawn(2)[:3]
    assert drawn(1)[4] == BEGINNING
    assert abs(clock.utc_now() - datetime.now(UTC)) < timedelta(hours=1)
    assert abs(time.time() - datetime.now(UTC).timestamp()) < 3600
    assert uuid.uuid4() != uuid.uuid4()


def test_each_process_has_a_clock_of_its_own() -> None:
    async def work() -> None:
        life = Life("a process")
        life.clock_offset = 3.0
        assert (await life.start(tell()) - clock.utc_now()).total_seconds() == 3

    async def tell() -> Any:
        return clock.utc_now()

    loop = SimulatedLoop()
    with seeded(0, loop):
        run(work(), loop)


def test_a_plan_is_drawn_from_its_seed_and_its_parts_do_not_depend_on_each_other() -> None:
    drawn = plan.draw(7)
    assert drawn == plan.draw(7) != plan.draw(8)
    assert len(drawn.stories) == plan.ORDERS
    assert len(drawn.faults) == plan.FAULTS
    kept = drawn.keep((2, 5), (3,))
    assert kept.numbers == ((2, 5), (3,))
    assert kept.stories[0] == drawn.stories[1]


def test_every_kind_of_fault_is_drawn_within_a_few_seeds() -> None:
    drawn = Counter(fault.kind for seed in range(20) for fault in plan.draw(seed).faults)
    assert drawn.keys() == set(plan.KINDS)
    assert drawn[plan.CRASH] == max(drawn.values())


def test_the_size_of_batches_is_drawn_and_told() -> None:
    drawn = [plan.draw(seed) for seed in range(20)]
    assert {each.batch_limit for each in drawn} == {*plan.BATCH_LIMITS}
    assert f"batches of at most {drawn[3].batch_limit}" in next(report.story_lines(outcome(drawn[3])))


@pytest.mark.parametrize(
    ("kind", "target", "words"), [(plan.PROVIDER, "provider", "provider"), (plan.ELECT, "order", "election of order")]
)
def test_a_fault_is_told_in_words(kind: str, target: str, words: str) -> None:
    assert str(Fault(3, 1.5, kind, target)) == f"fault 3: {words}, from 1.5 s on"


def test_a_fault_happens_once_at_its_chance() -> None:
    now = 0.0
    injector = Injector(
        [Fault(1, 10.0, plan.CRASH, "order-1", plan.BEFORE_WRITE, skip=1)], Trace(lambda: now), lambda: now
    )

    def chance(place: str = plan.BEFORE_WRITE) -> bool:
        return injector.strike("order-1", place) is not None

    assert not chance()  # too early
    now = 10.0
    assert not chance(plan.AFTER_WRITE)  # another place
    assert not chance()  # the one that it lets pass
    assert injector.strike("order-2", plan.BEFORE_WRITE) is None
    assert chance()
    assert not chance()
    assert [fault.number for fault in injector.happened] == [1]


def test_shrinking_finds_the_one_order_and_the_two_faults_that_matter() -> None:
    runs = 0

    def run_plan(tried: Plan) -> Outcome:
        nonlocal runs
        runs += 1
        orders, faults = tried.numbers
        fails = 4 in orders and {3, 17} <= {*faults}
        return outcome(tried, "stock: 3 are free") if fails else outcome(tried)

    found = shrinking.shrink(run_plan(plan.draw(1)), run_plan)
    assert found.plan.numbers == ((4,), (3, 17))
    assert runs < shrinking.MOST_RUNS


def test_shrinking_does_not_turn_one_violation_into_another() -> None:
    def run_plan(tried: Plan) -> Outcome:
        return outcome(tried, "stock: 3 are free") if 4 in tried.numbers[0] else outcome(tried, "lost: order 9")

    assert shrinking.shrink(run_plan(plan.draw(1)), run_plan).plan.numbers[0] == (4,)


def test_a_story_names_its_parts_and_how_to_see_it_again() -> None:
    told = "\n".join(report.story_lines(outcome(plan.draw(3).keep((2,), ()), "lost: order 2 was accepted")))
    assert "order 2 at" in told
    assert "VIOLATED  lost: order 2 was accepted" in told
    assert "ordersaga simulate --seed 3 --only-orders 2 --only-faults none" in told


def test_a_failure_that_does_not_happen_again_is_told_as_that() -> None:
    again = outcome(plan.draw(3))
    failed = SeedResult(3, "1" * 64, ("stock: 3 are free",), Counter(), Counter(), 0, 2, 1.0, Met())
    (line,) = report.told(failed, again)
    assert line.startswith("seed 3 does not fail again")
    assert (failed.sha256 in line, again.sha256 in line) == (True, True)


def test_a_summary_says_what_was_never_met() -> None:
    told = "\n".join(report.summary_lines(Summary(seeds=2, seconds=4.0)))
    assert "2 seeds in 4.0 s (0.5 a second)" in told
    assert "failpoints never met: consumer.acknowledged" in told
    assert "rows never met:" in told
