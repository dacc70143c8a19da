"""Amounts: exact between JSON numbers in major units and integers in minor ones."""

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from payment_service.funds.requests import (
    Consumption,
    InvoicePayment,
    NewBankAccount,
    NewInvoice,
    NewPayment,
    NewRetainer,
    Replenishment,
)
from shared.money import MAX_MINOR_UNITS, WITHOUT_DECIMALS, require_whole, to_json_number, to_minor_units

minor_units = st.integers(-MAX_MINOR_UNITS, MAX_MINOR_UNITS)


@given(minor_units)
def test_every_amount_survives_the_wire(minor: int) -> None:
    on_the_wire = json.dumps(to_json_number(minor))
    assert to_minor_units(json.loads(on_the_wire)) == minor
    assert to_minor_units(json.loads(on_the_wire, parse_float=Decimal)) == minor


@given(minor_units)
def test_whole_amounts_are_written_without_decimals(minor: int) -> None:
    number = to_json_number(minor)
    assert isinstance(number, int) == (minor % 100 == 0)


@given(st.floats(-1e13, 1e13))
def test_a_float_is_taken_for_what_its_sender_wrote_or_refused(value: float) -> None:
    written = Fraction(repr(value)) * 100
    if written.denominator == 1 and abs(written) <= MAX_MINOR_UNITS:
        assert to_minor_units(value) == written
    else:
        with pytest.raises(ValueError, match="must"):
            to_minor_units(value)


@pytest.mark.parametrize(
    ("value", "minor"),
    [(0, 0), (10, 1000), (19.99, 1999), (0.1, 10), (0.29, 29), (1.15, 115), (8.2, 820), (1e3, 100_000), (-0.0, 0)],
)
def test_amounts_that_binary_fractions_miss_are_exact(value: float, minor: int) -> None:
    assert to_minor_units(value) == minor


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), float("-inf"), Decimal("NaN"), Decimal("Infinity")),
        *(10**12 + 1, 10**400, -(10**400), 1e300, 5e-324, 0.001, 19.999, Decimal("0.001")),
        *(True, False, None, "10", b"10", [10], {"$gt": 0}, 10j, Fraction(1)),
    ],
)
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        to_minor_units(value)


def test_a_currency_without_decimals_has_whole_amounts_only() -> None:
    require_whole("JPY", {"totalAmount": 1000, "price": 0})
    require_whole("USD", {"totalAmount": 1050})
    require_whole("KWD", {"totalAmount": 1})
    with pytest.raises(ValueError, match=r"^JPY has no decimals, but totalAmount is 10\.5$"):
        require_whole("JPY", {"price": 1000, "totalAmount": 1050})


@pytest.mark.parametrize("currency", sorted(WITHOUT_DECIMALS))
def test_what_the_currency_does_not_have_is_refused_wherever_a_currency_is_given(currency: str) -> None:
    half: dict[str, Any] = {"currency": currency, "clientId": "c", "customerId": "c", "paymentMethod": "wire"}
    half |= {"retainerType": "t", "name": "n", "accountNumber": "1", "bankName": "b"}
    half |= dict.fromkeys(("amount", "initialAmount", "totalAmount", "balance"), 10.5)
    models: list[type[BaseModel]] = [
        NewRetainer,
        NewInvoice,
        NewPayment,
        NewBankAccount,
        Consumption,
        Replenishment,
        InvoicePayment,
    ]
    for model in models:
        names = {field.alias: field for field in model.model_fields.values()}
        body = {name: value for name, value in half.items() if name in names}
        with pytest.raises(ValidationError, match=f"{currency} has no decimals, but (.*[aA]mount|balance) is 10.5"):
            model.model_validate(body)
        model.model_validate(body | {"currency": "USD"})
