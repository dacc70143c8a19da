"""BSON values: what becomes of a value that is stored and read again, and how MongoDB compares values.

Stored documents are never changed in place, so they may share their parts.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import bson
from bson import Binary, Decimal128, Int64, ObjectId
from bson.codec_options import CodecOptions
from bson.tz_util import utc

Document = dict[str, Any]


class _Missing:
    """The type of MISSING, which is neither a value nor a null."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()

_UNCHANGED = frozenset({str, bool, float, bytes, type(None), ObjectId, Int64})
_OF_THE_CLIENTS: CodecOptions[Document] = CodecOptions(tz_aware=True)
"""The options of shared.database.client that decide what a value is read as."""

_MIN_INT32, _MAX_INT32 = -(2**31), 2**31 - 1
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1

_RANKS: dict[type, int] = {
    _Missing: 0,
    type(None): 1,
    int: 2,
    float: 2,
    Int64: 2,
    Decimal128: 2,
    str: 3,
    dict: 4,
    list: 5,
    bytes: 6,
    Binary: 6,
    ObjectId: 7,
    bool: 8,
    datetime: 9,
}
"""The order of the types. Values of one rank are compared with each other."""
NULL_RANK = _RANKS[type(None)]


def encoded(value: Any) -> Any:
    """Return a value as it is stored. Raises what the driver raises for one that it cannot send."""
    kind = type(value)
    if kind in _UNCHANGED:
        return value
    if kind is dict:
        return {_field_name(name): encoded(each) for name, each in value.items()}
    if kind is list or kind is tuple:
        return [encoded(each) for each in value]
    if kind is datetime:
        return _moment(value)
    if kind is int:
        return integer(value)
    return _unusual(value)


def copied(value: Any) -> Any:
    """Return a stored value for a caller, who may change it."""
    kind = type(value)
    if kind is dict:
        return {
            name: copied(each) if type(each) is dict or type(each) is list else each for name, each in value.items()
        }
    if kind is list:
        return [copied(each) if type(each) is dict or type(each) is list else each for each in value]
    return value


def is_mapping(value: Any) -> bool:
    """Return whether a value of a caller stands for a document."""
    kind = type(value)
    return kind is dict or (kind not in _UNCHANGED and isinstance(value, Mapping))


def integer(value: int) -> int:
    """Return a whole number as the driver reads it. Raises OverflowError for one of more than 64 bits."""
    if _MIN_INT32 <= value <= _MAX_INT32:
        return value
    if not _MIN_INT64 <= value <= _MAX_INT64:
        raise OverflowError("MongoDB can only handle up to 8-byte ints")
    return Int64(value)


def key_of(value: Any) -> Any:
    """Return something hashable that is the same for values that MongoDB takes for equal."""
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is bool:
        return (bool, value)
    if kind is dict:
        return (dict, *((name, key_of(each)) for name, each in value.items()))
    if kind is list:
        return (list, *map(key_of, value))
    if kind is float and math.isnan(value):
        return (float, "nan")
    if kind is Decimal128:
        return value.to_decimal()
    if kind is Binary:
        return (value.subtype, bytes(value))
    return value


def rank(value: Any) -> int:
    """Return the place of the value's type in the order of types."""
    try:
        return _RANKS[type(value)]
    except KeyError:
        raise NotImplementedError(f"comparing values of the type {type(value).__name__}") from None


def order_of(value: Any) -> tuple[int, Any]:
    """Return something that is ordered as MongoDB orders values, across types."""
    return rank(value), comparable(value)


def comparable(value: Any) -> Any:
    """Return something that is ordered as MongoDB orders values of the same rank."""
    kind = type(value)
    if kind is str or kind is datetime or kind is int:
        return value
    if kind is dict:
        return tuple((rank(each), name, comparable(each)) for name, each in value.items())
    if kind is list:
        return tuple(map(order_of, value))
    if kind is bytes or kind is Binary:
        return len(value), getattr(value, "subtype", 0), bytes(value)
    if kind is Decimal128:
        return _comparable_number(value.to_decimal())
    if kind is float:
        return _comparable_number(value)
    return 0 if value is None or value is MISSING else value


def same(one: Any, other: Any) -> bool:
    """Return whether two stored values are the same to the last bit: 1 and 1.0 are not."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return (
            len(one) == len(other)
            and list(one) == list(other)
            and all(same(each, other[name]) for name, each in one.items())
        )
    if type(one) is list:
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _comparable_number(value: float | Decimal) -> float | Decimal:
    if math.isnan(value):
        raise NotImplementedError("comparing NaN")
    return value


def _field_name(name: Any) -> str:
    if type(name) is str:
        return name
    if isinstance(name, str):
        return str.__str__(name)
    raise bson.errors.InvalidDocument(f"documents must have only string keys, key was {name!r}")


def _moment(value: datetime) -> datetime:
    """Return a time as the driver reads it: in UTC, cut to the millisecond. One without a zone is taken for UTC."""
    if value.microsecond % 1000 == 0 and value.tzinfo is UTC:
        return value
    if value.tzinfo is not None:
        value = value.astimezone(utc)
    return value.replace(microsecond=value.microsecond // 1000 * 1000, tzinfo=utc)


def _unusual(value: Any) -> Any:
    """Encode subclasses of the usual types, such as enumerations, and leave the rest to the driver's own BSON."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return integer(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, Mapping):
        return {_field_name(name): encoded(each) for name, each in value.items()}
    return bson.decode(bson.encode({"value": value}), _OF_THE_CLIENTS)["value"]
