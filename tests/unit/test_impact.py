"""What affected orders amount to, which cause does more harm, and the words for it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.console.lists import page_links, read_period
from operations.console.tracebacks import fold
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.title import title_of
from operations.impact.impact import Impact, deadline_of, impact_of, share_out
from operations.impact.waiting import services_awaited
from operations.impact.wording import money_in_words, orders_in_words
from shared.http import ProblemError

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
SOON, LATER = NOW + timedelta(minutes=1), NOW + timedelta(hours=1)
FIELDS = {"stockStatus": "PENDING", "paymentStatus": "PENDING", "deadline": SOON}


def an_order(**changes: Any) -> dict[str, Any]:
    order = {"_id": "o1", "userId": "u1", "status": "PENDING", "settled": False, "totalAmount": 1000, "currency": "EUR"}
    return order | FIELDS | changes


orders = st.lists(
    st.builds(
        an_order,
        _id=st.text("ab", min_size=1, max_size=4),
        userId=st.sampled_from(["u1", "u2", "u3", None]),
        status=st.sampled_from(["PENDING", "FAILED", "CONFIRMED", "CANCELLED", None]),
        settled=st.booleans(),
        totalAmount=st.one_of(st.integers(0, 10**9), st.just("damaged")),
        currency=st.sampled_from(["EUR", "USD"]),
        deadline=st.one_of(st.none(), st.datetimes(timezones=st.just(UTC))),
    ),
    max_size=8,
)


# --- What orders amount to. ---


def test_an_impact_counts_orders_customers_and_money_and_knows_the_next_deadline() -> None:
    impact = impact_of(
        [
            an_order(),
            an_order(userId="u2", status="FAILED", totalAmount=250, currency="USD", dueAt=LATER),
            an_order(status="CONFIRMED", settled=True, totalAmount=99),
        ],
        unknown=1,
    )
    assert impact.as_json() == {
        "orders": 3,
        "ordersByStatus": {"CONFIRMED": 1, "FAILED": 1, "PENDING": 1},
        "unsettledOrders": 2,
        "customers": 2,
        "amounts": {"EUR": 10.99, "USD": 2.5},
        "amountsAtStake": {"EUR": 10, "USD": 2.5},
        "nextDeadline": "2026-01-31T09:31:00.000Z",
        "withoutOrder": 1,
        "complete": True,
    }
    assert orders_in_words(impact) == (
        "3 orders of 2 customers: 1 CONFIRMED, 1 FAILED, 1 PENDING; 1 letter leads to no known order"
    )
    assert money_in_words(impact) == "10.00 EUR + 2.50 USD at stake"


def test_what_is_not_complete_says_so() -> None:
    impact = impact_of([an_order()], complete=False)
    assert orders_in_words(impact) == "at least 1 order of 1 customer: 1 PENDING"
    assert money_in_words(impact) == "at least 10.00 EUR at stake"
    settled = impact_of([an_order(settled=True)], complete=False)
    assert money_in_words(settled) == "what was looked at is settled"
    assert money_in_words(impact_of([an_order(settled=True)])) == "all settled: no money is at stake"
    assert (orders_in_words(impact_of([])), money_in_words(impact_of([]))) == ("no orders", "")
    assert orders_in_words(impact_of([], unknown=2)) == "2 letters lead to no known order"


@given(orders)
def test_an_impact_does_not_depend_on_the_order_of_its_orders(found: list[dict[str, Any]]) -> None:
    assert impact_of(found) == impact_of(list(reversed(found)))


@pytest.mark.parametrize(
    ("order", "at"),
    [
        (an_order(), SOON),
        (an_order(settled=True), None),
        (an_order(holdId="h1"), NOW),
        (an_order(holdId="h1", stockStatus="RESERVED"), SOON),
        (an_order(holdId="h2"), SOON),
        (an_order(status="FAILED", dueAt=LATER), LATER),
        (an_order(status="FAILED", dueAt=LATER, compensating=True), None),
        (an_order(status="FAILED", dueAt=LATER, unpublished=True), None),
        (an_order(status="PROVISIONING", dueAt=LATER), None),
        (an_order(deadline=None), None),
    ],
)
def test_the_deadline_of_an_order(order: dict[str, Any], at: datetime | None) -> None:
    assert deadline_of(order, {"h1": NOW}) == at


# --- Harm. ---


def test_harm_is_money_then_customers_then_orders_then_the_deadline() -> None:
    ranked: Sequence[Impact] = [
        impact_of([an_order(totalAmount=1001)]),
        impact_of([an_order(totalAmount=500), an_order(totalAmount=500, userId="u2")]),
        impact_of([an_order(totalAmount=500), an_order(totalAmount=500)]),
        impact_of([an_order(deadline=SOON)]),
        impact_of([an_order(deadline=LATER)]),
        impact_of([an_order(deadline=None)]),
        impact_of([an_order(totalAmount=10**6, settled=True)]),
    ]
    backwards = ranked[::-1]
    assert sorted(backwards, key=lambda impact: impact.harm) == ranked


@given(orders, orders)
def test_another_affected_order_never_lessens_the_harm(some: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    assert impact_of([*some, *more]).harm <= impact_of(some).harm


@given(st.dictionaries(st.text("abc", max_size=5), st.integers(1, 100_000), min_size=1), st.integers(1, 50_000))
def test_a_budget_is_shared_out_so_that_small_ones_get_all_and_nothing_is_wasted(
    sizes: dict[str, int], budget: int
) -> None:
    shares = share_out(sizes, budget)
    assert shares.keys() == sizes.keys()
    assert all(1 <= shares[name] <= size for name, size in sizes.items())
    if len(sizes) <= budget:
        assert sum(shares.values()) <= budget
        if sum(sizes.values()) > budget:
            cut = [shares[name] for name, size in sizes.items() if shares[name] < size]
            assert sum(shares.values()) > budget - len(sizes)
            assert min(cut) >= max(shares.values()) - 1
        else:
            assert shares == sizes


# --- What waits for whom. ---


def test_a_placed_order_waits_for_those_who_have_not_answered() -> None:
    assert services_awaited(an_order(), NOW) == {"inventory", "payment", "order", "RabbitMQ"}
    assert services_awaited(an_order(stockStatus="RESERVED"), NOW) == {"payment", "order", "RabbitMQ"}
    assert services_awaited(an_order(settled=True), NOW) == frozenset()


def test_a_failed_order_that_awaits_a_decision_waits_for_no_service() -> None:
    assert services_awaited(an_order(status="FAILED"), NOW) == frozenset()


# --- Titles, traces, filters and pages. ---


@pytest.mark.parametrize(
    ("error_type", "message", "title"),
    [
        ("PoisonError", "product # is unknown to inventory", "product … is unknown to inventory"),
        ("KeyError", "#", "KeyError: …"),
        ("ValueError", "price", "ValueError: price"),
        ("TimeoutError", "", "TimeoutError"),
        ("", "", "unknown error"),
    ],
)
def test_the_title_of_a_group_is_its_cause(error_type: str, message: str, title: str) -> None:
    assert title_of(error_type, message) == title


TRACE = """Traceback (most recent call last):
  File "order_service/handlers.py", line 59, in handle
    raise PoisonError(order)
  File "/opt/venv/lib/python3.11/site-packages/pymongo/pool.py", line 1, in run
    return call()
           ^^^^^^
  File "/usr/lib/python3.11/asyncio/tasks.py", line 2, in wait
    await it
shared.errors.PoisonError: no such order
"""


def test_frames_of_libraries_are_folded() -> None:
    before, folded, after = fold(TRACE)
    assert (before.frames, folded.frames, after.frames) == (0, 2, 0)
    assert before.text.endswith("raise PoisonError(order)\n")
    assert after.text == "shared.errors.PoisonError: no such order\n"


@given(
    st.lists(st.sampled_from([*TRACE.splitlines(keepends=True), "\n", "    deeper\n", "no end"]), max_size=12).map(
        "".join
    )
)
def test_no_line_of_a_trace_is_lost(trace: str) -> None:
    assert "".join(part.text for part in fold(trace)) == trace


def test_a_hidden_value_is_no_cause_to_search_for() -> None:
    group = {"errorType": "ValueError", "pattern": "no token tok_abcdefgh for the Card"}
    assert GroupFilters(cause="for the card").names(group)
    assert GroupFilters(cause="valueerror").names(group)
    assert not GroupFilters(cause="tok_abc").names(group)


def test_a_period_is_a_span_or_two_times() -> None:
    assert read_period("1h", "", "", NOW) == (NOW - timedelta(hours=1), None)
    assert read_period("1h", "2026-01-01", "2h", NOW) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        NOW - timedelta(hours=2),
    )
    for wrong in (("1y", "", ""), ("", "noon", ""), ("", "", "later")):
        with pytest.raises(ProblemError):
            read_period(*wrong, NOW)


@given(st.integers(0, 500), st.integers(1, 60))
def test_the_pages_of_a_list_follow_each_other_and_have_each_entry_once(total: int, size: int) -> None:
    seen = 0
    for page in range(1, 1000):
        shown = max(0, min(size, total - seen))
        links = page_links("/list", {"a": "b", "none": ""}, page=page, size=size, shown=shown, total=total)
        seen += shown
        assert (links.first, links.last) == (seen - shown + 1, seen)
        assert (links.newer is None) == (page == 1)
        if links.older is None:
            break
        assert links.older == f"/list?a=b&page={page + 1}"
    assert seen == total
