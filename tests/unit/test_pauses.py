"""When an inbox is paused, and what the pauses of services mean for the deadlines of orders."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from order_service.order import Order, Status
from order_service.pauses import (
    awaited_services,
    deadline_with,
    known_pauses,
    paused_services,
    waits_for_paused_only,
)
from order_service.saga import SAGA
from shared.pausing.pause import MOST_KEPT, NEWS_WITHIN, Pause, begun, ended, running
from shared.pausing.records import PauseRecord
from shared.pausing.watch import ANNOUNCE_EVERY, ANNOUNCED_FOR, must_announce
from tests.support.builders import TIMEOUTS, an_order
from tests.unit.test_saga import EVENTS, PAID, STOCK_RESERVED, play
from tests.unit.test_saga import STATES as SAGA_STATES

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
SAGA_TIMEOUT = TIMEOUTS.saga_timeout


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def paused_by_ann(pauses: Sequence[Pause], at: float, until: float | None = None) -> tuple[Pause, ...]:
    end = after(until) if until is not None else None
    return begun(pauses, after(at), by="ann", reason="a test", until=end)


Step = tuple[str, int, int | None]
STEPS = st.lists(
    st.tuples(st.sampled_from(["pause", "resume"]), st.integers(0, 600), st.none() | st.integers(1, 600)), max_size=40
)


def played(steps: Sequence[Step]) -> tuple[tuple[Pause, ...], datetime]:
    """The pauses after some steps, each so many seconds after the one before, and the time of the last."""
    pauses: tuple[Pause, ...] = ()
    now = NOW
    for what, seconds, lasts in steps:
        now += timedelta(seconds=seconds)
        until = now + timedelta(seconds=lasts) if lasts else None
        if what == "pause":
            pauses = begun(pauses, now, by="ann", reason="a test", until=until)
        else:
            pauses = ended(pauses, now) or pauses
    return pauses, now


@given(STEPS)
def test_pauses_follow_each_other_and_only_the_last_may_be_running(steps: list[Step]) -> None:
    pauses, now = played(steps)
    assert len(pauses) <= MOST_KEPT
    for one, other in itertools.pairwise(pauses):
        assert one.end is not None
        assert one.since <= one.end <= other.since
    assert all(not pause.is_running(now) for pause in pauses[:-1])
    if steps and steps[-1][0] == "resume":
        assert running(pauses, now) is None
    if steps and steps[-1][0] == "pause":
        assert running(pauses, now) == pauses[-1]


def test_a_second_pause_changes_reason_and_end_of_the_one_that_runs() -> None:
    first = paused_by_ann((), 0, until=60)
    (second,) = begun(first, after(30), by="bob", reason="it takes longer", until=None)
    assert second == Pause(NOW, None, None, "bob", "it takes longer")


def test_a_pause_with_an_end_is_over_by_itself() -> None:
    pauses = paused_by_ann((), 0, until=60)
    assert running(pauses, after(59)) == pauses[0]
    assert running(pauses, after(60)) is None
    assert ended(pauses, after(60)) is None
    assert len(paused_by_ann(pauses, 90)) == 2


def test_the_order_service_is_told_at_once_then_every_minute_until_an_hour_after_the_end() -> None:
    lasting = PauseRecord("payment", NOW, paused_by_ann((), 0))
    assert must_announce(lasting, NOW)
    told = PauseRecord("payment", NOW, lasting.pauses, announced_at=NOW)
    assert not must_announce(told, NOW + ANNOUNCE_EVERY / 2)
    assert must_announce(told, NOW + ANNOUNCE_EVERY)
    assert must_announce(told, NOW + timedelta(days=30))
    over = PauseRecord("payment", NOW, ended(lasting.pauses, after(60)) or (), announced_at=after(60))
    assert must_announce(over, after(60) + ANNOUNCED_FOR)
    assert not must_announce(over, after(61) + ANNOUNCED_FOR)


def test_what_the_order_service_is_told_names_nobody() -> None:
    told = PauseRecord("payment", NOW, paused_by_ann((), 0)).message().to_json()
    assert b"ann" not in told
    assert b"a test" not in told


def test_a_pause_of_another_service_is_over_when_its_news_stay_away() -> None:
    lasting, own = (
        PauseRecord("payment", NOW, (Pause(NOW),), heard_at=after(60)),
        PauseRecord("order", NOW, (Pause(NOW),)),
    )
    heard_until = after(60) + NEWS_WITHIN
    moment = timedelta(seconds=1)

    def known(now: datetime, hears_since: datetime = NOW) -> frozenset[str]:
        return paused_services(known_pauses([lasting, own], hears_since, now), now)

    assert known(heard_until) == {"payment", "order"}
    assert known(heard_until + moment) == {"order"}
    assert known_pauses([lasting], NOW, heard_until + moment) == {"payment": (Pause(NOW, ended_at=after(60)),)}
    assert known(heard_until + moment, hears_since=heard_until) == {"payment", "order"}, "it could not hear before"
    over = PauseRecord("payment", NOW, (Pause(NOW, ended_at=after(1)),), heard_at=after(60))
    assert known_pauses([over], NOW, heard_until + moment) == {"payment": over.pauses}


# --- Deadlines. ---

SERVICES = ("order", "inventory", "payment", "provisioning", "notification")
HISTORIES = st.dictionaries(st.sampled_from(SERVICES), STEPS.map(lambda steps: played(steps)[0]))
STATES = st.sampled_from([(), (STOCK_RESERVED,), (PAID,)])
MOMENTS = st.integers(-3600, 3600).map(after)


def pending(created_at: datetime, answers: Sequence[object]) -> Order:
    order = an_order(now=created_at)
    for answer in answers:
        order = SAGA.advance(order, answer, created_at).order  # type: ignore[arg-type]
    return order


@given(MOMENTS, STATES, HISTORIES, st.integers(0, 30_000))
def test_an_order_has_its_whole_time_after_a_pause_that_it_waited_for(
    created_at: datetime, answers: Sequence[object], pauses: dict[str, tuple[Pause, ...]], late: int
) -> None:
    order = pending(created_at, answers)
    now = created_at + timedelta(seconds=late)
    deadline = deadline_with(order, pauses, SAGA_TIMEOUT, now)

    relevant = [each for name in awaited_services(order) | {"order"} for each in pauses.get(name, ())]
    meant = [each for each in relevant if each.since < order.deadline and (each.end or now) > order.created_at]
    assert deadline >= order.deadline
    if not meant:
        assert deadline == order.deadline
    for pause in meant:
        end = min(pause.end or now, now)
        assert deadline >= end + SAGA_TIMEOUT
        taken = end - max(pause.since, order.created_at)
        assert deadline - order.deadline >= taken, "it has lost time by the pause"
    if any(pause.is_running(now) for pause in meant):
        assert deadline > now, "it ends during the pause"
    latest = max((min(each.end or now, now) for each in relevant), default=now)
    assert deadline <= max(order.deadline, latest + SAGA_TIMEOUT), "it never ends"


@given(MOMENTS, STATES, HISTORIES)
def test_a_later_look_never_takes_time_away(
    created_at: datetime, answers: Sequence[object], pauses: dict[str, tuple[Pause, ...]]
) -> None:
    order = pending(created_at, answers)
    found = [
        deadline_with(order, pauses, SAGA_TIMEOUT, created_at + timedelta(seconds=late)) for late in (0, 400, 9000)
    ]
    assert found == sorted(found)


def test_an_order_waits_for_those_who_have_not_answered() -> None:
    assert awaited_services(an_order()) == {"inventory", "payment"}
    assert awaited_services(play(STOCK_RESERVED)) == {"payment"}
    assert awaited_services(play(PAID)) == {"inventory"}
    cancelled = SAGA.advance(play(PAID), EVENTS["deadline"], NOW).order
    assert awaited_services(cancelled) == {"inventory", "payment"}


def test_every_order_that_awaits_an_answer_waits_for_a_service() -> None:
    for name, order in SAGA_STATES.items():
        expected = SAGA.awaits_answer(order)
        assert bool(awaited_services(order)) == expected, name


def test_commands_are_not_repeated_while_all_who_could_answer_are_paused() -> None:
    order = play(STOCK_RESERVED)
    assert waits_for_paused_only(order, {"payment"})
    assert waits_for_paused_only(order, {"order"})
    assert not waits_for_paused_only(order, {"inventory"})
    assert not waits_for_paused_only(an_order(), {"payment"})
    assert not waits_for_paused_only(an_order(status=Status.FAILED), {"payment"})
    assert paused_services({"payment": paused_by_ann((), 0, until=60), "order": ()}, after(30)) == {"payment"}
