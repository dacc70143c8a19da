"""The number of an order for people."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_service.order_number import ids_of, order_number

IDS = st.uuids().map(lambda found: found.hex)


@given(IDS)
def test_a_number_leads_back_to_its_order(order_id: str) -> None:
    number = order_number(order_id)
    assert number is not None
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}", number)
    first, last = ids_of(number)
    assert first <= order_id <= last
    assert order_number(first) == order_number(last) == number


@given(IDS, IDS)
def test_orders_share_a_number_only_if_their_ids_begin_alike(one: str, other: str) -> None:
    assert (order_number(one) == order_number(other)) == (one[:10] == other[:10])


def test_a_number_is_understood_as_people_write_it() -> None:
    assert ids_of("o1il-m2qx") == ids_of("0111M2QX") == ids_of(" 01 11 M2 QX ")


@pytest.mark.parametrize("number", ["", "7ZK4", "7ZK4-M2QXX", "7ZK4-M2Q!", "7ZK4-M2QU", "é" * 8])
def test_anything_else_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="is not an order number such as"):
        ids_of(number)


@pytest.mark.parametrize("order_id", ["o1", "A" * 32, "a" * 31])
def test_an_id_of_another_kind_has_no_number(order_id: str) -> None:
    assert order_number(order_id) is None
