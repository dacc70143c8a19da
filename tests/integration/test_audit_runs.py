"""Audits on a schedule: one at a time over all processes, each result kept, and what a process leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from operations.audit import runner
from operations.audit.report import Report, Violation
from operations.audit.runner import AuditedStack, AuditRunner
from operations.audit.runs import (
    AGAIN,
    INTERRUPTED,
    LEASE,
    MOST_KEPT,
    NOT_DONE,
    OK,
    RUNNING,
    SCHEDULE,
    VIOLATIONS,
    AuditRuns,
    violations_of,
)
from operations.schema import SCHEMA
from shared.database import Database
from shared.schema import prepare
from tests.support.builders import connected
from tests.support.consoles import Clock
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_operations") as found:
        await prepare(found, SCHEMA)
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def begun(runs: AuditRuns, by: str = "anna") -> str:
    run_id = await runs.begin(by)
    assert run_id is not None
    return run_id


async def test_of_many_processes_one_audits(database: Database, clock: Clock) -> None:
    ready = asyncio.Barrier(10)

    async def compete(name: str) -> str | None:
        await ready.wait()
        return await AuditRuns(database, clock).begin(name, every=HOUR)

    begun = [run for run in await asyncio.gather(*(compete(f"p{number}") for number in range(10))) if run]
    assert len(begun) == 1
    assert [run["_id"] for run in (await AuditRuns(database, clock).page(limit=20)).items] == begun


async def test_an_audit_is_due_an_interval_after_the_last_one(database: Database, clock: Clock) -> None:
    runs = AuditRuns(database, clock)
    await runs.end(await begun(runs), Report(), seconds=1, judged=5)
    clock.now += HOUR - SECOND
    assert await runs.begin(SCHEDULE, every=HOUR) is None
    clock.now += SECOND
    assert await runs.begin(SCHEDULE, every=HOUR) is not None


async def test_a_long_audit_is_followed_by_a_long_rest(database: Database, clock: Clock) -> None:
    runs = AuditRuns(database, clock)
    run = await begun(runs)
    clock.now += timedelta(minutes=10)
    assert await runs.renew(run, 1)
    await runs.end(run, Report(), seconds=600, judged=1)
    clock.now += timedelta(minutes=90) - SECOND
    assert await runs.begin(SCHEDULE, every=timedelta(minutes=1)) is None
    clock.now += SECOND
    assert await runs.begin(SCHEDULE, every=timedelta(minutes=1)) is not None


async def test_the_audit_of_a_process_that_died_is_taken_over(database: Database, clock: Clock) -> None:
    dead, alive = AuditRuns(database, clock), AuditRuns(database, clock)
    lost = await begun(dead)
    clock.now += LEASE - SECOND
    assert await dead.renew(lost, 7)
    clock.now += LEASE - SECOND
    assert await alive.begin("boris") is None
    assert (await alive.current() or {})["judged"] == 7
    clock.now += SECOND
    taken = await begun(alive, "boris")
    assert not await dead.renew(lost, 8)
    await dead.end(lost, Report(), seconds=1, judged=9)  # it was only stalled
    found = {run["_id"]: run["status"] for run in (await alive.page(limit=10)).items}
    assert found == {taken: RUNNING, lost: INTERRUPTED}
    assert (await alive.current() or {})["_id"] == taken
    await alive.end(taken, Report(), seconds=1, judged=9)
    assert await alive.current() is None


async def test_the_schedule_takes_over_the_audit_of_a_process_that_died(database: Database, clock: Clock) -> None:
    runs = AuditRuns(database, clock)
    killed = await runs.begin(SCHEDULE, every=HOUR)
    clock.now += LEASE - SECOND
    assert await runs.begin(SCHEDULE, every=HOUR) is None
    clock.now += SECOND
    taken = await runs.begin(SCHEDULE, every=HOUR)
    assert taken is not None
    found = {run["_id"]: run["status"] for run in (await runs.page(limit=10)).items}
    assert found == {taken: RUNNING, killed: INTERRUPTED}
    await runs.end(taken, Report(), seconds=1, judged=1)
    clock.now += HOUR - SECOND
    assert await runs.begin(SCHEDULE, every=HOUR) is None  # only the dead one was due at once


@pytest.mark.parametrize(("lasted", "pause"), [(SECOND, AGAIN), (10 * AGAIN, 10 * AGAIN)])
async def test_an_audit_that_was_not_done_is_due_again_soon(
    database: Database, clock: Clock, lasted: timedelta, pause: timedelta
) -> None:
    runs = AuditRuns(database, clock)
    run_id = await begun(runs, SCHEDULE)
    clock.now += lasted
    await runs.give_up(run_id, NOT_DONE, "MongoDB is away")
    clock.now += pause - SECOND
    assert await runs.begin(SCHEDULE, every=24 * HOUR) is None
    clock.now += SECOND
    assert await runs.begin(SCHEDULE, every=24 * HOUR) is not None


async def test_a_result_lists_what_fits_and_counts_all(database: Database, clock: Clock) -> None:
    runs = AuditRuns(database, clock)
    run_id = await begun(runs)
    many = [Violation(7, "message lost", "order", f"o{number}", "x" * 5000, "y") for number in range(MOST_KEPT + 5)]
    await runs.end(run_id, Report(violations=many, unlisted=10), seconds=2, judged=1000)
    run = await runs.find(run_id)
    assert run is not None
    assert (run["status"], run["found"], run["byInvariant"]["7"]) == (VIOLATIONS, MOST_KEPT + 15, MOST_KEPT + 5)
    kept = violations_of(run)
    assert (len(kept), len(kept[0].found), kept[0].command) == (MOST_KEPT, 1000, many[0].command)


async def test_results_come_in_pages(database: Database, clock: Clock) -> None:
    runs = AuditRuns(database, clock)
    for _ in range(5):
        await runs.end(await begun(runs), Report(), seconds=0, judged=0)
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = await runs.page(limit=2, cursor=cursor)
        assert page.total == 5
        seen += [run["_id"] for run in page.items]
        cursor = page.next_cursor
    assert (len(set(seen)), cursor) == (5, None)
    with pytest.raises(ValueError, match="cursor"):
        await runs.page(limit=2, cursor="nonsense")


@pytest.mark.usefixtures("clean_broker")
async def test_the_schedule_of_two_processes_audits_once(
    database: Database, mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    stack = AuditedStack(mongodb_url, amqp_url, database_prefix)
    runs = AuditRuns(database)
    schedules = [asyncio.create_task(AuditRunner(stack, runs).keep_schedule(HOUR)) for _ in range(2)]

    async def is_done() -> bool:
        return await runs.last() is not None

    await eventually(is_done, 60, "the scheduled audit")
    await end_tasks(*schedules)
    page = await runs.page(limit=10)
    assert [(run["by"], run["status"]) for run in page.items] == [(SCHEDULE, OK)]


async def test_what_could_not_be_done_says_why(database: Database, mongodb_url: str, database_prefix: str) -> None:
    runs = AuditRuns(database)
    stack = AuditedStack(mongodb_url, "amqp://guest:guest@127.0.0.1:9", database_prefix)
    run_id = await begun(runs)
    await AuditRunner(stack, runs).run(run_id)
    run = await runs.find(run_id)
    assert run is not None
    assert run["status"] == NOT_DONE
    assert "RabbitMQ" in run["why"]
    assert await runs.last(answered=True) is None
    assert await runs.current() is None


async def test_an_audit_that_is_stopped_is_due_again_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def never_ends(*_: object, **__: object) -> Report:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(runner, "audit", never_ends)
    runs = AuditRuns(database)
    running = asyncio.create_task(AuditRunner(AuditedStack("", "", ""), runs).keep_schedule(HOUR))
    await asyncio.wait_for(begun.wait(), 60)
    await end_tasks(running)
    last = await runs.last()
    assert last is not None
    assert (last["status"], last["why"]) == (INTERRUPTED, "its process was stopped")
    assert await runs.begin(SCHEDULE, every=HOUR) is not None


async def test_a_damaged_record_does_not_end_the_schedule(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object, **__: object) -> Report:
        raise KeyError("quantity")

    monkeypatch.setattr(runner, "audit", fails)
    runs = AuditRuns(database)
    run_id = await begun(runs)
    await AuditRunner(AuditedStack("", "", ""), runs).run(run_id)
    run = await runs.find(run_id)
    assert run is not None
    assert (run["status"], "log of the console" in run["why"]) == (NOT_DONE, True)


async def test_no_audit_is_scheduled_with_an_interval_of_0(database: Database) -> None:
    await AuditRunner(AuditedStack("", "", ""), AuditRuns(database)).keep_schedule(timedelta())
    assert (await AuditRuns(database).page(limit=1)).total == 0
