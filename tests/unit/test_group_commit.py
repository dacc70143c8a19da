"""Group commit: a single call runs at once, others in groups; each caller gets its own result or the group's error."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.group_commit import GroupCommit, NotStartedError


class Work:
    """Doubles numbers; keeps the groups it was given, and waits for `open` where it is set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failure: BaseException | None = None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return [2 * item for item in items]


@pytest.fixture
def work() -> Work:
    return Work()


async def test_a_single_call_is_done_alone(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    assert await grouping.submit(1) == 2
    assert await grouping.submit(2) == 4
    assert work.groups == [[1], [2]]


async def test_calls_at_once_share_one_group_and_get_their_own_results(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    assert await asyncio.gather(*(grouping.submit(number) for number in range(5))) == [0, 2, 4, 6, 8]
    assert work.groups == [[0, 1, 2, 3, 4]]


async def test_what_arrives_during_a_run_forms_the_next_groups_up_to_the_limit(work: Work) -> None:
    grouping = GroupCommit(work, limit=2)
    work.open.clear()
    first = asyncio.create_task(grouping.submit(0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(grouping.submit(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    work.open.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4, 6]
    assert work.groups == [[0], [1, 2], [3]]


async def test_an_error_reaches_every_caller_of_the_group_and_no_other(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    work.failure = RuntimeError("boom")
    results = await asyncio.gather(grouping.submit(1), grouping.submit(2), return_exceptions=True)
    assert [str(result) for result in results] == ["boom", "boom"]
    work.failure = None
    assert await grouping.submit(3) == 6


async def test_too_few_results_are_an_error_and_not_a_caller_that_waits_for_ever() -> None:
    async def one_short(items: Sequence[int]) -> list[int]:
        return list(items)[1:]

    grouping = GroupCommit(one_short, limit=10)
    async with asyncio.timeout(60):
        results = await asyncio.gather(grouping.submit(1), grouping.submit(2), return_exceptions=True)
    assert any(isinstance(result, ValueError) for result in results)


class SimulatedEndError(BaseException):
    """A BaseException that is not an Exception, like a simulated crash."""


async def test_a_crash_of_the_work_does_not_leave_its_callers_waiting(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    work.failure = SimulatedEndError("crashed")
    async with asyncio.timeout(60):
        with pytest.raises(SimulatedEndError):
            await grouping.submit(1)
    work.failure = None
    async with asyncio.timeout(60):
        assert await grouping.submit(2) == 4


async def test_what_waits_while_a_run_is_cancelled_is_done_by_another_run() -> None:
    async def cancelled_at_zero(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise asyncio.CancelledError
        return list(items)

    grouping = GroupCommit(cancelled_at_zero, limit=1)
    async with asyncio.timeout(60):
        first, *others = await asyncio.gather(*map(grouping.submit, range(3)), return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert others == [1, 2]


async def test_a_caller_that_gives_up_does_not_disturb_the_others(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    work.open.clear()
    impatient, patient = (asyncio.create_task(grouping.submit(number)) for number in (1, 2))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.sleep(0)
    work.open.set()
    assert await patient == 4
    assert impatient.cancelled()


async def test_draining_waits_for_everything_that_was_submitted(work: Work) -> None:
    grouping = GroupCommit(work, limit=1)
    work.open.clear()
    calls = [asyncio.create_task(grouping.submit(number)) for number in range(3)]
    await asyncio.sleep(0)
    draining = asyncio.create_task(grouping.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    work.open.set()
    await draining
    assert [call.result() for call in calls if call.done()] == [0, 2, 4]
    await grouping.drain()


async def test_what_has_waited_too_long_for_its_turn_is_refused_and_never_done(work: Work) -> None:
    grouping = GroupCommit(work, limit=10)
    work.open.clear()
    running = asyncio.create_task(grouping.submit(1, start_within=60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        with pytest.raises(NotStartedError):
            await grouping.submit(2, start_within=0)
    patient = asyncio.create_task(grouping.submit(3, start_within=60))
    await asyncio.sleep(0)
    work.open.set()
    assert (await running, await patient) == (2, 6), "what runs already is finished"
    assert work.groups == [[1], [3]]
