"""Samples: which minutes are counted, how latencies are added up, and what the charts make of them."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.console.charts import FAILURES, GOODS, HEIGHT, QUEUES, THROUGHPUT, WIDTH, ceiling, charts_of, draw
from operations.samples import sample as samples
from operations.samples.history import RANGES, Point, Times, points_of
from operations.samples.sample import (
    CANCELLED,
    FAILED,
    LONGEST_WINDOW,
    LOOKED_BACK,
    MINUTE,
    SERVERS,
    SETTLED,
    Ended,
    Levels,
    QueueAge,
    Sample,
    Window,
    bucket_of,
    next_window,
    oldest_queue,
    percentile,
    sample_of,
    samples_of,
)

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
HOUR = RANGES["1h"]


def minute(number: int) -> datetime:
    return NOON + number * MINUTE


def test_a_minute_is_counted_some_seconds_after_its_end() -> None:
    assert next_window(NOON, NOON + timedelta(seconds=69)) is None
    assert next_window(NOON, NOON + timedelta(seconds=70)) == Window(NOON, minute(1))
    assert next_window(minute(5), NOON) is None, "another process's clock is ahead"


def test_what_was_missed_is_made_up_for_in_pieces_and_not_without_end() -> None:
    now = NOON + timedelta(seconds=30)
    assert next_window(None, now) == Window(NOON - LOOKED_BACK, NOON - LOOKED_BACK + LONGEST_WINDOW)
    assert next_window(minute(-3), now) == Window(minute(-3), NOON)
    assert next_window(minute(-3000), now) == next_window(None, now)


@given(st.lists(st.floats(0.001, 100_000), min_size=1, max_size=50), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_at_most_five_percent_off(seconds: list[float], share: float) -> None:
    found = percentile(samples.add_up({bucket_of(each): 1} for each in seconds), share)
    exact = sorted(seconds)[max(1, math.ceil(share * len(seconds))) - 1]
    assert found is not None
    assert abs(found / exact - 1) < 0.05
    assert percentile({}, share) is None


def test_what_ended_counts_in_its_minute_and_a_failed_order_has_no_latency() -> None:
    ended = [
        Ended(minute(0), SETTLED, "goods", 3, 5),
        Ended(minute(1), CANCELLED, "goods", 4, 2),
        Ended(minute(1), FAILED, SERVERS, 50, 1),
        Ended(minute(-1), SETTLED, "goods", 3, 1),
    ]
    levels = Levels(7, "order.inbox", 3.0)
    first, second = samples_of(Window(minute(0), minute(2)), {minute(0): 9}, ended, levels, complete=True)
    assert (first.accepted, first.settled, first.cancelled, first.failed) == (9, 6, 0, 0)
    assert first.latency == {"goods": {3: 6}}, "what ended earlier by a late clock is not lost"
    assert (second.accepted, second.settled, second.cancelled, second.failed) == (0, 2, 2, 1)
    assert second.latency == {"goods": {4: 2}}
    assert (first.levels, second.levels) == (Levels(), levels), "a level is that of the last minute"
    assert sample_of(second.as_document()) == second


def test_the_age_of_a_queue_goes_on_over_a_restart_of_the_console() -> None:
    before = Sample(minute(0), levels=Levels(0, "order.inbox", 600.0))
    just_started = {"order.inbox": QueueAge(30.0, since_start=True), "payment.inbox": QueueAge(90.0)}
    assert oldest_queue(just_started, before, minute(2)) == Levels(None, "order.inbox", 660.0)
    was_empty = just_started | {"order.inbox": QueueAge(30.0)}
    assert oldest_queue(was_empty, before, minute(2)) == Levels(None, "payment.inbox", 90.0)
    assert oldest_queue({}, before, minute(2)) == Levels()


def test_points_add_up_what_their_step_has_and_show_what_is_missing() -> None:
    taken = [
        Sample(minute(number), accepted=10, settled=8, failed=1, latency={"goods": {bucket_of(1): 1, bucket_of(9): 1}})
        for number in (-7, -6, -2)
    ]
    points = points_of(taken, RANGES["6h"], NOON)
    assert len(points) == 72
    known = [point for point in points if point.accepted is not None]
    assert [(point.at, point.accepted, point.failed) for point in known] == [(minute(-10), 10, 2), (minute(-5), 10, 1)]
    assert known[0].goods.p50 == pytest.approx(1, rel=0.05)
    assert known[0].goods.p99 == pytest.approx(9, rel=0.05)
    assert known[0].servers == Times()


def test_the_minute_that_goes_on_is_no_gap() -> None:
    taken = [Sample(minute(number), accepted=1) for number in range(-60, -1)]
    points = points_of(taken, HOUR, NOON + timedelta(seconds=5))
    assert points[-1] == Point(minute(-2), 1, 0, 0, 0)
    assert len(points) == 60
    stopped = points_of(taken[:-5], HOUR, NOON + timedelta(seconds=5))
    assert stopped[-1].accepted is None, "a console that has stopped is one"


@given(st.floats(0.001, 10**7), st.booleans())
def test_the_scale_is_round_and_not_too_large(value: float, seconds: bool) -> None:
    top = ceiling(value, seconds=seconds)
    assert value * 0.99999 <= top <= max(value * 3.1, 0.001)


def test_a_chart_has_a_line_for_each_run_of_points_and_a_gap_between() -> None:
    points = [Point(minute(n), accepted=value, settled=value) for n, value in enumerate((1.0, 2.0, None, 5.0, None))]
    chart = draw(THROUGHPUT, points)
    assert [line.points.count(",") for line in chart.lines if line.series == 0] == [2, 2]
    assert [(gap.x, gap.width) for gap in chart.gaps] == [(240, 120), (480, 120)]
    assert [column.words for column in chart.columns][2:4] == ["no data", "accepted 5/min, settled 5/min"]
    assert chart.top == "5"
    assert chart.latest == ["5/min", "5/min"]
    assert "accepted: from 1/min to 5/min, last 5/min" in chart.summary
    assert not chart.empty


def test_bars_are_stacked_and_a_chart_without_data_says_so() -> None:
    full = draw(FAILURES, [Point(NOON, accepted=0, failed=3, cancelled=7)])
    lower, upper = full.bars
    assert full.top == "10"
    assert lower.y == pytest.approx(upper.y + upper.height, abs=0.11)
    assert all(0 <= bar.y <= HEIGHT and 0 <= bar.x <= WIDTH for bar in full.bars)
    assert draw(GOODS, [Point(NOON), Point(minute(1))]).empty
    age = draw(QUEUES, [Point(NOON, accepted=0, queue_age=3600.0, queue="order.inbox")])
    assert [column.words for column in age.columns] == ["at most 1 h in order.inbox"]


def test_charts_of_servers_and_letters_are_shown_where_they_mean_something() -> None:
    goods = [Point(NOON, accepted=0)]
    assert [chart.name for chart in charts_of(goods, letters=False)] == ["throughput", "goods", "failures", "queues"]
    both = [Point(NOON, accepted=0, servers=Times(1, 2))]
    names = [chart.name for chart in charts_of(both, letters=True)]
    assert names == ["throughput", "goods", "servers", "failures", "letters", "queues"]
