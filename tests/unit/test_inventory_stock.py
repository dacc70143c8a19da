"""Pending moves: how they change a product, and when they are cleared."""

from datetime import UTC, datetime

import pytest

from inventory_service.stock import (
    Kind,
    Product,
    ReservationLine,
    Status,
    clear_moves,
    may_return,
    return_units,
    take,
    units_by_product,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def product(quantity: int, pending_moves: dict[str, int] | None = None) -> Product:
    return Product(
        id="p",
        kind=Kind.GOODS,
        version=7,
        created_at=NOW,
        updated_at=NOW,
        quantity=quantity,
        supplied=20,
        pending_moves=pending_moves or {},
    )


def test_taking_units_lowers_the_quantity_and_adds_pending_moves() -> None:
    after = take(product(10, {"a": -1}), {"a": 2, "b": 3})

    assert (after.quantity, after.pending_moves) == (5, {"a": -3, "b": -3})
    assert after.held_for("a") == 3
    assert after.version == 7  # the version it was read at guards the write


def test_giving_units_back_reverses_the_pending_move() -> None:
    after = return_units(product(10, {"a": -2}), {"a": 2, "b": 3})

    assert (after.quantity, after.pending_moves) == (15, {"a": 2, "b": 3})
    assert after.held_for("a") == 0


@pytest.mark.parametrize(
    ("change", "status", "quantity", "pending_moves"),
    [
        (-2, Status.RESERVED, 10, {}),
        (-2, Status.FAILED, 12, {}),
        (-2, Status.RELEASED, 12, {}),
        (+2, Status.RELEASED, 10, {}),
        (+2, Status.RESERVED, 10, {"a": 2}),  # given back, but not recorded as released yet
        (-2, None, 10, {"a": -2}),
        (+2, None, 10, {"a": 2}),
    ],
)
def test_a_pending_move_is_cleared_once_the_status_of_the_order_is_known(
    change: int, status: Status | None, quantity: int, pending_moves: dict[str, int]
) -> None:
    after = clear_moves(product(10, {"a": change}), {"a": status} if status else {"other": Status.FAILED})

    assert (after.quantity, after.pending_moves) == (quantity, pending_moves)


def test_a_product_with_nothing_to_clear_stays_the_same_object() -> None:
    before = product(10, {"a": -2})

    assert clear_moves(before, {}) is before
    assert clear_moves(before, {"b": Status.FAILED}) is before


def test_units_may_return_unless_their_order_is_known_to_keep_them() -> None:
    item = product(10, {"kept": -1, "refused": -2, "unknown": -4, "released": +8})

    assert may_return(item, {"kept": Status.RESERVED, "refused": Status.FAILED}) == 6


def test_units_of_a_product_on_two_lines_add_up() -> None:
    assert units_by_product([ReservationLine("p", 1, 5), ReservationLine("q", 2, 5), ReservationLine("p", 3, 5)]) == {
        "p": 4,
        "q": 2,
    }
