"""The loop behind all background work: when it runs, what ends it, and how often it logs an error."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure
from structlog.testing import capture_logs

from shared.background import Interval, run_periodically
from shared.errors import BusUnavailableError
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks

NEVER = 3600.0

Log = list[MutableMapping[str, Any]]


class Work:
    """Plays back the given outcomes in turn: errors are raised, other values returned; after that it returns None."""

    def __init__(self, *outcomes: BaseException | bool | None) -> None:
        self.outcomes = list(outcomes)
        self.runs: list[float] = []

    async def __call__(self) -> bool | None:
        self.runs.append(time.monotonic())
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@contextlib.asynccontextmanager
async def running(
    work: Callable[[], Any], every: Interval = NEVER, wake: asyncio.Event | None = None
) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(run_periodically(work, every=every, name="work", wake=wake))
    try:
        yield task
    finally:
        await end_tasks(task)


async def log_of(*outcomes: BaseException | None) -> Log:
    """Return what is logged while the outcomes follow each other."""
    work = Work(*outcomes)
    with capture_logs() as logs:
        async with running(work, every=0.001):
            await eventually(lambda: len(work.runs) > len(outcomes), within=30)
    return logs


def levels(logs: Log) -> Sequence[str]:
    return [log["log_level"] for log in logs]


async def test_work_runs_at_once_and_then_after_each_interval() -> None:
    work = Work()
    async with running(work, every=0.01):
        await eventually(lambda: len(work.runs) >= 4)
    assert work.runs[3] - work.runs[0] >= 0.03


async def test_an_interval_may_differ_each_time() -> None:
    pauses, work = iter([NEVER, 0.0, NEVER]), Work()
    async with running(work, every=lambda: next(pauses)):  # the first is asked for before the first run
        await eventually(lambda: len(work.runs) == 2)


async def test_work_that_has_more_to_do_runs_again_at_once() -> None:
    work = Work(True, True, False)
    async with running(work):
        await eventually(lambda: len(work.runs) == 3)


async def test_an_event_starts_the_work_early_also_when_it_comes_during_a_run() -> None:
    wake, work = asyncio.Event(), Work()

    async def woken_meanwhile() -> None:
        if len(work.runs) == 1:
            wake.set()
        await work()

    async with running(woken_meanwhile, wake=wake):
        await eventually(lambda: len(work.runs) == 1)
        wake.set()
        await eventually(lambda: len(work.runs) == 3)
        assert not wake.is_set()


async def test_after_errors_the_loop_waits_longer_each_time_even_if_woken() -> None:
    wake, work = asyncio.Event(), Work(*(ValueError("defect") for _ in range(3)))

    async def wakes_itself() -> None:
        wake.set()
        await work()

    async with running(wakes_itself, every=0, wake=wake):
        await eventually(lambda: len(work.runs) >= 4)
    assert work.runs[3] - work.runs[0] >= 0.7 * (0.1 + 0.2 + 0.4)


@pytest.mark.parametrize("busy", [True, False])
async def test_a_cancellation_ends_the_loop_and_is_not_an_error(busy: bool) -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        if busy:
            await asyncio.Event().wait()

    with capture_logs() as logs:
        async with running(work) as task:
            await started.wait()
            task.cancel()
            await asyncio.wait({task}, timeout=60)
            assert task.cancelled()
    assert logs == []


async def test_a_cancellation_that_a_driver_swallows_ends_the_loop_after_the_run() -> None:
    reached = asyncio.Event()

    async def swallows() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            reached.set()
            await asyncio.Event().wait()

    async with running(swallows, every=0) as task:
        await reached.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=60)
        assert task.done()


async def test_a_cancellation_that_a_driver_makes_does_not_end_the_loop() -> None:
    logs = await log_of(asyncio.CancelledError())
    assert levels(logs) == ["error", "info"]


@pytest.mark.parametrize(
    "error", [AutoReconnect("connection closed"), BusUnavailableError("no connection"), TimeoutError()]
)
async def test_an_error_that_passes_by_itself_is_one_warning_and_its_end_one_line(error: Exception) -> None:
    logs = await log_of(error, error, error)
    assert levels(logs) == ["warning", "info"]
    assert {log["work"] for log in logs} == {"work"}
    assert "exception" not in logs[0]


@pytest.mark.parametrize("error", [ValueError("defect"), OperationFailure("not authorized on orders", 13)])
async def test_any_other_error_is_logged_once_with_its_traceback(error: Exception) -> None:
    logs = await log_of(error, error, error)
    assert levels(logs) == ["error", "info"]
    assert "Traceback" in logs[0]["exception"]


async def test_an_error_is_logged_again_when_its_type_or_text_changes() -> None:
    first, other_text, other_type = ValueError("one"), ValueError("two"), KeyError("one")
    logs = await log_of(first, other_text, first, other_type)
    assert [log["error"] for log in logs[:-1]] == ["ValueError: one", "ValueError: two", "KeyError: 'one'"]


async def test_an_error_that_returns_after_a_success_is_logged_again() -> None:
    logs = await log_of(ValueError("one"), None, ValueError("one"))
    assert levels(logs) == ["error", "info", "error", "info"]


async def test_work_that_succeeds_logs_nothing() -> None:
    assert await log_of(None, None) == []
