"""`order.replace` does what `dataclasses.replace` does, for any field of an order."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_service.order import Order, replace
from tests.support.builders import an_order

NAMES = tuple(field.name for field in dataclasses.fields(Order))


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.text(), st.integers())))
def test_it_returns_the_order_with_other_values_and_leaves_the_first_alone(changes: dict[str, object]) -> None:
    order = an_order()
    before = dataclasses.asdict(order)
    assert replace(order, **changes) == dataclasses.replace(order, **changes)  # type: ignore[arg-type]
    assert dataclasses.asdict(order) == before


def test_a_field_that_an_order_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="colour"):
        replace(an_order(), colour="green")  # type: ignore[call-arg]
