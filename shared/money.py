"""Amounts: JSON numbers with at most two decimals on the wire, integer minor units (cents) in Python and records."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

MAX_MINOR_UNITS = 10**14
"""A trillion in major units: up to this, amounts with two decimals are exact in the 53 bits of a JSON double."""

WITHOUT_DECIMALS = frozenset(
    (
        *("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"),
        *("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"),
    )
)
"""Currencies without a minor unit (exponent 0 in ISO 4217, list one). Their amounts are whole numbers."""


def require_whole(currency: str, amounts: Mapping[str, int]) -> None:
    """Raise ValueError if an amount in minor units has decimals that the currency does not have."""
    if currency in WITHOUT_DECIMALS:
        for name, minor in amounts.items():
            if minor % 100:
                raise ValueError(f"{currency} has no decimals, but {name} is {to_json_number(minor)}")


def to_minor_units(value: Any) -> int:
    """Convert a JSON number in major units to minor units.

    Raises ValueError unless it is a finite number with at most two decimals and an absolute value of at most a
    trillion.
    """
    if type(value) not in (int, float, Decimal):
        raise ValueError("must be a number")  # pydantic reports a ValueError for the field, a TypeError passes through
    if value != value or abs(value) * 100 > MAX_MINOR_UNITS:
        raise ValueError(f"must be a finite number of at most {MAX_MINOR_UNITS // 100}")
    # The shortest text of a float is what the sender wrote: Decimal(repr(19.99)) is 19.99, Decimal(19.99) is not.
    minor = Decimal(repr(value) if isinstance(value, float) else value) * 100
    if minor != minor.to_integral_value():
        raise ValueError(f"must have at most two decimals: {value} can be rounded to {round(value, 2)}")
    return int(minor)


def to_json_number(minor: int) -> int | float:
    """Convert minor units to the shortest JSON number in major units: 1000 → 10, 1999 → 19.99."""
    return minor // 100 if minor % 100 == 0 else minor / 100


def _from_json_only(value: Any, info: ValidationInfo) -> Any:
    return to_minor_units(value) if info.mode == "json" else value


# Not multipleOf 0.01: 19.99 is no multiple of it in binary floating point, so validators would reject it.
_SCHEMA = WithJsonSchema({"type": "number", "description": "An amount with at most two decimals", "examples": [19.99]})

Money = Annotated[int, BeforeValidator(_from_json_only), PlainSerializer(to_json_number), _SCHEMA]
"""A field of a message: a number in major units on the wire, minor units in Python, also when constructed."""

JsonMoney = Annotated[int, BeforeValidator(to_minor_units), PlainSerializer(to_json_number), _SCHEMA]
"""A field of a request body, which arrives as parsed JSON: always validated from a number in major units."""
