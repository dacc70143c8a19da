"""Which new orders are admitted: rules for one process, and a queue with several of them, on a clock of its own."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_service.backlog import FEW, FOR_ALL, FOR_SMALL, LONGEST_RETRY_SECONDS, MOST, Backlog

SHOP, OTHER = "shop", "other"


def filled(count: int, limit: float = 30, caller: str = SHOP, since: float = 0.0) -> Backlog:
    backlog = Backlog(limit, 0.0)
    for number in range(count):
        backlog.add(f"{caller}-{number}", caller, since)
    return backlog


def overloaded(limit: float = 30) -> tuple[Backlog, float]:
    """Return the backlog of a shop that has ordered twice what is carried out, for four tenths of the limit."""
    backlog, tick = Backlog(limit, 0.0), limit / 1000
    for number in range(400):
        now = number * tick
        backlog.add(f"{SHOP}-{2 * number}", SHOP, now)
        backlog.add(f"{SHOP}-{2 * number + 1}", SHOP, now)
        backlog.remove(f"{SHOP}-{number}", now)
    return backlog, 400 * tick


def test_a_burst_is_no_queue() -> None:
    """Whatever is known of the rate, orders that have not waited are not refused."""
    backlog, now = overloaded()
    for number in range(1000):
        backlog.remove(f"{SHOP}-{number}", now)
    for number in range(5000):
        assert backlog.retry_after(SHOP, now) is None
        backlog.add(f"burst-{number}", SHOP, now)
    assert backlog.expected(now) == 0.0


def test_what_waits_divided_by_what_leaves_is_the_wait() -> None:
    backlog, now = overloaded()
    assert len(backlog) == 400  # and 1 leaves per tick
    assert backlog.expected(now) == pytest.approx(12, rel=0.05)
    assert backlog.expected(now, joining=500) == pytest.approx(27, rel=0.05)
    assert backlog.retry_after(SHOP, now) is None
    assert backlog.retry_after(SHOP, now, joining=500) == LONGEST_RETRY_SECONDS


def test_while_nothing_leaves_orders_are_refused_long_before_the_saga_gives_up_and_admitted_again_once_it_flows() -> (
    None
):
    backlog = filled(100)
    stopped = 30 * FOR_ALL
    assert backlog.retry_after(SHOP, stopped - 0.1) is None
    assert backlog.retry_after(SHOP, stopped + 0.1) == 1
    assert backlog.retry_after(SHOP, 300.0) == LONGEST_RETRY_SECONDS
    for number in range(100):
        backlog.remove(f"{SHOP}-{number}", 300.0)
    assert backlog.retry_after(SHOP, 300.0) is None


def test_a_standstill_comes_on_top_of_what_is_to_be_worked_off() -> None:
    backlog, now = overloaded()
    assert backlog.expected(now + 4) == pytest.approx(16, rel=0.05)
    assert backlog.retry_after(SHOP, now) is None
    assert backlog.retry_after(SHOP, now + 4) is not None


def test_a_few_orders_that_are_stuck_by_themselves_are_no_queue() -> None:
    backlog = filled(FEW - 1)
    backlog.add("new", SHOP, 1000.0)
    assert backlog.retry_after(SHOP, 1000.0) is None


def test_orders_that_a_later_one_overtakes_are_not_waited_for() -> None:
    backlog = filled(100)
    assert backlog.retry_after(SHOP, 100.0) is not None
    backlog.add("new", SHOP, 100.0)
    backlog.remove("new", 100.1)
    assert len(backlog) == 0
    assert backlog.retry_after(SHOP, 100.1) is None


def test_a_caller_below_its_share_is_admitted_before_one_above_it() -> None:
    backlog = filled(100)
    backlog.add("one", OTHER, 1.0)
    between = 30 * (FOR_ALL + FOR_SMALL) / 2
    assert backlog.retry_after(SHOP, between) is not None
    assert backlog.retry_after(OTHER, between) is None
    assert backlog.retry_after("a third", between) is None
    assert backlog.retry_after(OTHER, 30 * FOR_SMALL + 1.1) is not None


def test_a_caller_alone_has_no_share_of_others() -> None:
    backlog = filled(100)
    assert backlog.retry_after(SHOP, 30 * (FOR_ALL + FOR_SMALL) / 2) is not None


def test_what_an_earlier_life_accepted_waits_too() -> None:
    backlog = Backlog(30, 1000.0)
    backlog.add("new", SHOP, 1000.0)
    backlog.add("known", SHOP, 1000.0)
    backlog.adopt([(f"old-{number}", 25.0 - number / 100) for number in range(100)] + [("known", 0.0)], 1000.0)
    assert len(backlog) == 102
    assert backlog.waited(1000.0) == pytest.approx(25, abs=0.2)
    assert backlog.to_look_up(1000.0) == [f"old-{number}" for number in range(100)]
    assert backlog.retry_after(SHOP, 1000.0) is not None  # the orders before it have waited nearly as long as they may


def test_an_order_that_was_looked_up_stands_for_those_before_it() -> None:
    backlog = filled(1000)
    asked = backlog.to_look_up(10.0)
    assert asked == [f"{SHOP}-{number}" for number in range(9, 1000, 10)]
    backlog.remove(f"{SHOP}-9", 10.0)
    backlog.looked_up(asked, set(asked[50:]), 10.0)
    assert len(backlog) == 1000 - 490 - 10
    assert backlog.to_look_up(10.0)[0] == f"{SHOP}-504"


def test_the_memory_is_bounded() -> None:
    backlog = filled(MOST + 10)
    assert len(backlog) == MOST


Step = tuple[str, int]


@given(
    limit=st.floats(1, 3600),
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "wait", "look up", "adopt"]), st.integers(0, 30)), max_size=200
    ),
)
def test_whatever_happens_it_counts_right(limit: float, steps: list[Step]) -> None:
    """Only what was added is counted, shares add up, and the answer is a pause within its bounds, or none."""
    backlog, now, added = Backlog(limit, 0.0), 0.0, set[str]()
    for action, number in steps:
        order_id, caller = f"o{number}", (SHOP, OTHER, None)[number % 3]
        if action == "add":
            backlog.add(order_id, caller, now)
            added.add(order_id)
        elif action == "remove":
            backlog.remove(order_id, now)
            added.discard(order_id)
        elif action == "wait":
            now += number * limit / 100
        elif action == "adopt":
            backlog.adopt([(order_id, number)], now)
            added.add(order_id)
        else:
            asked = backlog.to_look_up(now)
            backlog.looked_up(asked, set(asked[::2]), now)
        assert len(backlog) <= len(added)
        assert sum(backlog._of_caller.values()) == len(backlog)
        assert 0 not in backlog._of_caller.values()
        assert backlog.expected(now) >= 0
        pauses = [backlog.retry_after(each, now) for each in (SHOP, OTHER, None, "new")]
        assert all(pause is None or 1 <= pause <= LONGEST_RETRY_SECONDS for pause in pauses)
        if len(backlog) < FEW:
            assert pauses == [None] * 4
        if backlog.waited(now) > limit:
            assert None not in pauses


TICK = 0.05


@dataclass
class Model:
    """Orders that wait in one queue, however many processes take and answer them. Each process sees a part of it."""

    limit: float
    processes: int
    capacity: Callable[[float], float]
    offered: Callable[[float], float]
    shares: tuple[int, ...] | None = None
    now: float = 0.0
    queue: "deque[tuple[str, float]]" = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chance = random.Random(7)
        self.backlogs = [Backlog(self.limit, 0.0) for _ in range(self.processes)]
        self._due = self._credit = 0.0
        self._looked = [0.0] * self.processes
        self._number = 0

    def run(self, until: float) -> "Model":
        while self.now < until:
            self.now += TICK
            self._take()
            self._settle()
            self._look()
        return self

    def p99(self) -> float:
        return sorted(self.waits)[int(len(self.waits) * 0.99)]

    def _take(self) -> None:
        self._due += self.offered(self.now) * TICK
        while self._due >= 1:
            self._due -= 1
            backlog = self.chance.choices(self.backlogs, self.shares)[0]
            if backlog.retry_after(SHOP, self.now) is not None:
                self.refused_at.append(self.now)
                continue
            self._number += 1
            order_id = str(self._number)
            backlog.add(order_id, SHOP, self.now)
            self.queue.append((order_id, self.now))

    def _settle(self) -> None:
        possible = self.capacity(self.now) * TICK
        self._credit = min(self._credit + possible, 2 * possible + 1) if possible else 0.0
        while self._credit >= 1 and self.queue:
            self._credit -= 1
            order_id, since = self.queue.popleft()
            self.waits.append(self.now - since)
            self.settled.add(order_id)
            self.chance.choice(self.backlogs).remove(order_id, self.now)

    def _look(self) -> None:
        for number, backlog in enumerate(self.backlogs):
            if self.now >= self._looked[number]:
                self._looked[number] = self.now + backlog.look_every
                asked = backlog.to_look_up(self.now)
                backlog.looked_up(asked, set(asked) - self.settled, self.now)


@pytest.mark.parametrize("limit", [2.0, 30.0])
@pytest.mark.parametrize(("processes", "shares"), [(1, None), (2, None), (3, (8, 1, 1)), (8, None)])
def test_under_twice_the_capacity_orders_settle_within_the_limit_and_nothing_is_idle(
    limit: float, processes: int, shares: tuple[int, ...] | None
) -> None:
    model = Model(limit, processes, lambda _: 100, lambda _: 200, shares).run(until=4 * limit)
    assert model.p99() <= limit
    assert len(model.waits) >= 0.99 * 100 * 4 * limit - 100
    assert model.refused_at


def test_below_the_capacity_nothing_is_refused() -> None:
    assert not Model(30, 4, lambda _: 100, lambda _: 90).run(until=60).refused_at


def test_a_little_load_over_many_processes_is_not_refused() -> None:
    assert not Model(30, 16, lambda _: 100, lambda _: 2).run(until=120).refused_at


def test_a_short_standstill_refuses_nothing() -> None:
    model = Model(30, 2, lambda now: 0 if 10 < now < 22 else 100, lambda _: 50).run(until=60)
    assert not model.refused_at


def test_a_long_standstill_stops_the_intake_which_resumes_soon_after_it() -> None:
    model = Model(30, 2, lambda now: 0 if 10 < now < 130 else 100, lambda _: 50).run(until=180)
    assert 20 < model.refused_at[0] < 35
    assert model.refused_at[-1] < 145
    assert max(model.waits) <= 121


def test_when_the_capacity_falls_the_promise_is_kept() -> None:
    model = Model(30, 2, lambda now: 20 if now > 20 else 100, lambda _: 80).run(until=120)
    assert model.p99() <= 30
    assert len([1 for at in model.refused_at if at < 22]) == 0
