"""Allocation: first come, first served, all or nothing, for any batches and any undecided orders elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service.allocation import (
    ONE_SERVER,
    Outcome,
    Refuse,
    Reserve,
    Wait,
    allocate,
    server_specification,
)
from inventory_service.stock import Kind, Product, may_return, take
from shared.contracts import OrderCreated
from shared.contracts.inventory import ServerSpecification
from tests.support.inventory_worker import Lines, order

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRODUCTS = ("a", "b", "c")


def goods(quantities: Lines, **changes: Any) -> dict[str, Product]:
    return {
        product_id: replace(
            Product(
                id=product_id,
                kind=Kind.GOODS,
                version=1,
                created_at=NOW,
                updated_at=NOW,
                quantity=quantity,
                supplied=quantity,
            ),
            **changes,
        )
        for product_id, quantity in quantities.items()
    }


VPS = Product(
    id="v", kind=Kind.VPS, version=1, created_at=NOW, updated_at=NOW, package="103.181.9", package_id="17", ram=4
)


def decide(requested: OrderCreated, products: dict[str, Product]) -> Outcome:
    return allocate([requested], products, {})[requested.order_id]


def test_an_order_that_fits_takes_everything() -> None:
    assert decide(order("o", {"a": 2, "b": 1}), goods({"a": 2, "b": 5})) == Reserve({"a": 2, "b": 1})


def test_a_refusal_says_how_much_was_asked_and_how_much_is_free() -> None:
    outcome = decide(order("o", {"b": 1, "a": 3}), goods({"a": 1, "b": 5}))

    assert outcome == Refuse("Insufficient stock for a: asked 3, free 1")


def test_a_smaller_order_behind_a_refused_one_is_served() -> None:
    outcomes = allocate([order("1", {"a": 3}), order("2", {"a": 3}), order("3", {"a": 2})], goods({"a": 5}), {})

    assert outcomes == {
        "1": Reserve({"a": 3}),
        "2": Refuse("Insufficient stock for a: asked 3, free 2"),
        "3": Reserve({"a": 2}),
    }


def test_units_of_a_product_on_two_lines_are_added_up() -> None:
    twice = order("o", {"a": 2})
    twice = twice.model_copy(update={"items": twice.items * 2})

    assert decide(twice, goods({"a": 3})) == Refuse("Insufficient stock for a: asked 4, free 3")


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        (order("o", {"a": 1, "p9": 1}, price=10), "Unknown product p9"),
        (order("o", {"a": 1}, price=9), "Price of a is 10, the order says 9"),
        (order("o", {"a": 1}, price=9.99), "Price of a is 10, the order says 9.99"),
        (order("o", {"v": 2}), ONE_SERVER),
        (order("o", {"v": 1, "w": 1}), ONE_SERVER),
    ],
)
def test_an_order_that_can_never_be_served_is_refused_with_the_reason(requested: OrderCreated, reason: str) -> None:
    products = goods({"a": 5}, price=1000) | {"v": VPS, "w": replace(VPS, id="w")}

    assert decide(requested, products) == Refuse(reason)


def test_a_server_needs_no_stock_and_says_what_to_provision() -> None:
    requested = order("o", {"a": 1, "v": 1})
    products = goods({"a": 1}) | {"v": VPS}

    assert decide(requested, products) == Reserve({"a": 1})
    assert server_specification(requested, products) == ServerSpecification(package="103.181.9", package_id="17", ram=4)
    assert server_specification(order("o", {"a": 1}), products) is None


def test_an_order_takes_only_what_it_does_not_hold_yet() -> None:
    products = goods({"a": 0, "b": 1}, pending_moves={"o": -1})

    assert decide(order("o", {"a": 1, "b": 2}), products) == Reserve({"b": 1})


def test_later_orders_wait_for_what_a_refused_order_holds() -> None:
    products = goods({"a": 0}, pending_moves={"1": -2}) | goods({"b": 0})

    for elsewhere in ({"a": 2}, {}):
        outcomes = allocate([order("1", {"a": 2, "b": 1}), order("2", {"a": 2})], products, elsewhere)
        assert outcomes == {"1": Refuse("Insufficient stock for b: asked 1, free 0"), "2": Wait()}


def test_an_order_that_holds_everything_is_served_before_earlier_ones() -> None:
    products = goods({"a": 1}, pending_moves={"2": -3})

    outcomes = allocate([order("1", {"a": 2}), order("2", {"a": 3})], products, {"a": 3})

    assert outcomes == {"1": Refuse("Insufficient stock for a: asked 2, free 1"), "2": Reserve({})}


def test_two_orders_that_each_hold_a_part_do_not_wait_for_each_other() -> None:
    """Order 1 holds a and needs b, whose last unit order 2 holds; order 2 needs c, of which one unit is left."""
    products = goods({"a": 0}, pending_moves={"1": -1}) | goods({"b": 0}, pending_moves={"2": -1}) | goods({"c": 1})

    outcomes = allocate(
        [order("1", {"a": 1, "b": 1, "c": 1}), order("2", {"b": 1, "c": 1})], products, {"a": 1, "b": 1}
    )

    assert outcomes == {"1": Refuse("Insufficient stock for b: asked 1, free 0"), "2": Reserve({"c": 1})}


def test_an_order_that_fits_only_with_what_may_come_back_waits_and_so_do_those_behind_it() -> None:
    outcomes = allocate(
        [order("1", {"a": 3}), order("2", {"a": 2}), order("3", {"a": 6}), order("4", {"b": 1})],
        goods({"a": 2, "b": 1}),
        {"a": 3},
    )

    assert (outcomes["1"], outcomes["2"], outcomes["4"]) == (Wait(), Wait(), Reserve({"b": 1}))
    assert isinstance(outcomes["3"], Refuse)


lines = st.dictionaries(st.sampled_from(PRODUCTS), st.integers(1, 5), min_size=1)
stocks = st.fixed_dictionaries({product_id: st.integers(0, 12) for product_id in PRODUCTS})


def orders(batch: Sequence[Lines]) -> list[OrderCreated]:
    return [order(f"o{number}", asked) for number, asked in enumerate(batch)]


def one_by_one(batch: Sequence[Lines], free: Lines) -> list[bool]:
    """Apply the rule naively: return for each order whether it fits into what the orders before it have left."""
    left = dict(free)
    served = []
    for asked in batch:
        fits = all(count <= left[product_id] for product_id, count in asked.items())
        served.append(fits)
        if fits:
            left = {product_id: count - asked.get(product_id, 0) for product_id, count in left.items()}
        assert min(left.values()) >= 0
    return served


@given(st.lists(lines, max_size=15), stocks)
def test_a_batch_has_the_result_of_its_orders_one_by_one(batch: list[Lines], free: Lines) -> None:
    outcomes = list(allocate(orders(batch), goods(free), {}).values())

    assert [isinstance(outcome, Reserve) for outcome in outcomes] == one_by_one(batch, free)
    for asked, outcome in zip(batch, outcomes, strict=True):
        assert isinstance(outcome, Refuse) or outcome == Reserve(asked)


@given(st.lists(lines, max_size=15), stocks, st.lists(st.integers(0, 15), max_size=4))
def test_the_division_into_batches_changes_nothing(batch: list[Lines], free: Lines, cuts: list[int]) -> None:
    requested = orders(batch)
    products = goods(free)
    outcomes: dict[str, Outcome] = {}
    for start, end in pairwise(sorted({0, *(min(cut, len(batch)) for cut in cuts), len(batch)})):
        part = requested[start:end]
        decided = allocate(part, products, {})
        outcomes |= decided
        for product_id in products:
            takes = {
                order_id: outcome.take[product_id]
                for order_id, outcome in decided.items()
                if isinstance(outcome, Reserve) and product_id in outcome.take
            }
            products[product_id] = take(products[product_id], takes)

    assert outcomes == allocate(requested, goods(free), {})


undecided = st.lists(st.tuples(st.sampled_from(PRODUCTS), st.integers(1, 5)), max_size=4)


@given(st.lists(lines, max_size=10), stocks, undecided)
def test_a_decision_holds_for_any_fate_of_undecided_orders(
    batch: list[Lines], free: Lines, elsewhere: list[tuple[str, int]]
) -> None:
    products = goods(free)
    for number, (product_id, count) in enumerate(elsewhere):
        item = products[product_id]
        products[product_id] = replace(item, pending_moves={**item.pending_moves, f"elsewhere{number}": -count})

    outcomes = allocate(orders(batch), products, {p.id: may_return(p, {}) for p in products.values()})

    for fates in product([False, True], repeat=len(elsewhere)):
        returned = dict(free)
        for (product_id, count), comes_back in zip(elsewhere, fates, strict=True):
            returned[product_id] += count if comes_back else 0
        for outcome, served in zip(outcomes.values(), one_by_one(batch, returned), strict=True):
            assert isinstance(outcome, Wait) or isinstance(outcome, Reserve) == served
    if not elsewhere:
        assert not any(isinstance(outcome, Wait) for outcome in outcomes.values())
