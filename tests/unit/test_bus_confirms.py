"""Tracking publications: a batch is done when the last is decided, failed if any failed, and never waits for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.amqp.confirms import Confirms, ConfirmTimes, Pending, UnroutableError
from shared.errors import BusUnavailableError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def expect(confirms: Confirms, *ids: str) -> Pending:
    pending = Pending(ids)
    for _ in ids:
        confirms.expect(pending, 0.0)
    return pending


@given(st.permutations(range(1, 7)))
def test_a_batch_is_done_after_its_last_confirm_in_any_order(order: list[int]) -> None:
    async def work() -> None:
        confirms = Confirms()
        first, second = expect(confirms, "a", "b", "c"), expect(confirms, "d", "e", "f")
        for count, tag in enumerate(order, 1):
            confirms.confirmed(tag, all_up_to=False)
            decided = set(order[:count])
            assert first.outcome.done() == ({1, 2, 3} <= decided)
            assert second.outcome.done() == ({4, 5, 6} <= decided)
        assert len(confirms) == 0

    run(work())


def test_one_confirm_may_cover_all_earlier_publications() -> None:
    async def work() -> None:
        confirms = Confirms()
        first, second = expect(confirms, "a", "b"), expect(confirms, "c", "d")
        confirms.confirmed(2, all_up_to=False)
        confirms.confirmed(3, all_up_to=True)
        assert first.outcome.done()
        assert not second.outcome.done()
        confirms.confirmed(4, all_up_to=True)
        await second.outcome

    run(work())


@pytest.mark.parametrize("all_up_to", [True, False])
def test_a_refused_publication_fails_its_own_batch_and_no_other(all_up_to: bool) -> None:
    async def work() -> None:
        confirms = Confirms()
        first, second = expect(confirms, "a"), expect(confirms, "b", "c")
        confirms.confirmed(1, all_up_to=False)
        confirms.refused(2, all_up_to=all_up_to)
        assert not second.outcome.done()
        confirms.confirmed(3, all_up_to=False)
        await first.outcome
        with pytest.raises(BusUnavailableError, match="refused"):
            await second.outcome

    run(work())


def test_a_returned_publication_is_an_error_even_if_confirmed() -> None:
    async def work() -> None:
        confirms = Confirms()
        first, second = expect(confirms, "a"), expect(confirms, "b", "c")
        confirms.returned("b", "nobody listens")
        confirms.confirmed(3, all_up_to=True)
        await first.outcome
        with pytest.raises(UnroutableError, match="nobody listens"):
            await second.outcome

    run(work())


def test_a_lost_connection_fails_every_waiting_publisher() -> None:
    async def work() -> None:
        confirms = Confirms()
        pending = Pending(["a", "b"])
        confirms.expect(pending, 0.0)  # the second was not even written yet
        confirms.lost("gone")
        with pytest.raises(BusUnavailableError, match="gone"):
            await pending.outcome
        confirms.confirmed(1, all_up_to=True)

    run(work())


def test_a_confirm_after_its_publisher_gave_up_changes_nothing() -> None:
    async def work() -> None:
        confirms = Confirms()
        late, next_one = expect(confirms, "a"), expect(confirms, "b")
        late.outcome.cancel()
        confirms.confirmed(2, all_up_to=True)
        await next_one.outcome

    run(work())


@given(st.lists(st.floats(0, 600)), st.floats(0, 60))
def test_confirms_that_all_take_as_long_are_not_overdue(before: list[float], usual: float) -> None:
    times = ConfirmTimes()
    for seconds in [*before, *[usual] * 200]:
        times.note(seconds)
    assert max(1.0, usual) <= times.overdue_after <= max(1.0, 1.01 * usual)


@given(st.lists(st.floats(0, 600)))
def test_a_confirm_is_overdue_after_a_second_at_the_earliest_and_later_the_longer_they_take(times: list[float]) -> None:
    shorter, longer = ConfirmTimes(), ConfirmTimes()
    for seconds in times:
        shorter.note(seconds)
        longer.note(2 * seconds)
    assert 1.0 <= shorter.overdue_after <= longer.overdue_after
