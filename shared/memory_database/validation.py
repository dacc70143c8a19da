"""Validators: the part of JSON schema that the collections' schemas use."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import Binary, Int64

from shared.memory_database.expressions import is_number
from shared.memory_database.values import key_of

Check = Callable[[Any], bool]
"""Whether a value is valid."""

_TYPES: dict[str, Check] = {
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
    "string": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "date": lambda value: type(value) is datetime,
    "binData": lambda value: type(value) in (bytes, Binary),
    "int": lambda value: type(value) is int,
    "long": lambda value: type(value) is Int64,
}


def validator(given: Mapping[str, Any]) -> Check:
    """Return the check of a collection's validator. Raises NotImplementedError for other keywords."""
    if given.keys() != {"$jsonSchema"}:
        raise NotImplementedError(f"a validator with {', '.join(given)}")
    return _schema(given["$jsonSchema"])


def _schema(given: Mapping[str, Any]) -> Check:
    checks = []
    for keyword, argument in given.items():
        if keyword not in _KEYWORDS:
            raise NotImplementedError(f"{keyword} in a validator")
        checks.append(_KEYWORDS[keyword](argument))
    return lambda value: all(check(value) for check in checks)


def _bson_type(names: str | Sequence[str]) -> Check:
    wanted = [names] if isinstance(names, str) else names
    if unknown := [name for name in wanted if name not in _TYPES]:
        raise NotImplementedError(f"the bsonType {', '.join(unknown)}")
    checks = [_TYPES[name] for name in wanted]
    return lambda value: any(check(value) for check in checks)


def _required(names: Sequence[str]) -> Check:
    return lambda value: type(value) is not dict or all(name in value for name in names)


def _properties(given: Mapping[str, Any]) -> Check:
    checks = {name: _schema(each) for name, each in given.items()}
    return lambda value: (
        type(value) is not dict or all(check(value[name]) for name, check in checks.items() if name in value)
    )


def _enum(values: Sequence[Any]) -> Check:
    keys = {key_of(each) for each in values}
    return lambda value: key_of(value) in keys


def _minimum(least: float) -> Check:
    return lambda value: not is_number(value) or value >= least


def _items(given: Mapping[str, Any]) -> Check:
    check = _schema(given)
    return lambda value: type(value) is not list or all(map(check, value))


def _min_items(least: int) -> Check:
    return lambda value: type(value) is not list or len(value) >= least


def _max_items(most: int) -> Check:
    return lambda value: type(value) is not list or len(value) <= most


def _any_of(given: Sequence[Mapping[str, Any]]) -> Check:
    checks = [_schema(each) for each in given]
    return lambda value: any(check(value) for check in checks)


def _one_of(given: Sequence[Mapping[str, Any]]) -> Check:
    checks = [_schema(each) for each in given]
    return lambda value: sum(check(value) for check in checks) == 1


def _not(given: Mapping[str, Any]) -> Check:
    check = _schema(given)
    return lambda value: not check(value)


_KEYWORDS: dict[str, Callable[[Any], Check]] = {
    "bsonType": _bson_type,
    "required": _required,
    "properties": _properties,
    "enum": _enum,
    "minimum": _minimum,
    "items": _items,
    "minItems": _min_items,
    "maxItems": _max_items,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
}
