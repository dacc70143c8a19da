"""Aggregation expressions: those of pipelines, and of `$expr` in queries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from shared.clock import Clock
from shared.memory_database import paths
from shared.memory_database.errors import TYPE_MISMATCH, ServerError
from shared.memory_database.values import MISSING, Document, encoded, integer, is_mapping, order_of


@dataclass(slots=True)
class Variables:
    """What expressions may refer to: the time of the operation, and the element of a `$filter`."""

    clock: Clock
    this: Any = MISSING
    _now: datetime | None = None

    @property
    def now(self) -> datetime:
        """The time at which the operation first asks for it."""
        if self._now is None:
            self._now = encoded(self.clock())
        return self._now


Expression = Callable[[Document, Variables], Any]

NOT_A_NUMBER = 16554
NOT_AN_ARRAY = 17124
NOTHING_TO_FILTER = 28651
NO_BRANCH = 40066


def expression(given: Any) -> Expression:
    """Return a function for an expression. Raises NotImplementedError for what is not modelled."""
    if isinstance(given, str):
        return _text(given)
    if is_mapping(given):
        return _operation(given) if next(iter(given), "").startswith("$") else _object(given)
    if isinstance(given, list | tuple):
        parts = [expression(each) for each in given]
        return lambda document, variables: [_or_null(part(document, variables)) for part in parts]
    constant = encoded(given)
    return lambda _document, _variables: constant


def _text(given: str) -> Expression:
    if given.startswith("$$"):
        return _variable(given)
    if given.startswith("$"):
        path = given[1:].split(".")
        return lambda document, _: paths.read(document, path)
    return _literal(given)


def is_true(value: Any) -> bool:
    """Return whether a value counts as true: all but false, zero, null and nothing."""
    return value is not None and value is not MISSING and (type(value) in (str, dict, list) or bool(value))


def _or_null(value: Any) -> Any:
    return None if value is MISSING else value


def _variable(given: str) -> Expression:
    name, *path = given[2:].split(".")
    if name == "REMOVE" and not path:
        return lambda _document, _variables: MISSING
    if name not in ("NOW", "this"):
        raise NotImplementedError(f"the variable $${name}")
    return lambda _, variables: paths.read(variables.now if name == "NOW" else variables.this, path)


def _object(given: Mapping[str, Any]) -> Expression:
    if any("." in name for name in given):
        raise NotImplementedError("an expression with a dotted field")
    fields = [(name, expression(each)) for name, each in given.items()]

    def evaluate(document: Document, variables: Variables) -> Any:
        found = ((name, field(document, variables)) for name, field in fields)
        return {name: value for name, value in found if value is not MISSING}

    return evaluate


def _operation(given: Mapping[str, Any]) -> Expression:
    (name, arguments), *more = given.items()
    if more or name not in _OPERATORS:
        raise NotImplementedError(f"the expression {', '.join(given)}")
    return _OPERATORS[name](arguments)


def _literal(value: Any) -> Expression:
    constant = encoded(value)
    return lambda _document, _variables: constant


def _if_null(arguments: Sequence[Any]) -> Expression:
    parts = [expression(each) for each in arguments]

    def evaluate(document: Document, variables: Variables) -> Any:
        value: Any = MISSING
        for part in parts:
            value = part(document, variables)
            if value is not None and value is not MISSING:
                break
        return value

    return evaluate


def _cond(arguments: Any) -> Expression:
    if not isinstance(arguments, list | tuple):
        raise NotImplementedError("$cond with named arguments")
    condition, then, otherwise = (expression(each) for each in arguments)

    def evaluate(document: Document, variables: Variables) -> Any:
        return (then if is_true(condition(document, variables)) else otherwise)(document, variables)

    return evaluate


def _switch(arguments: Mapping[str, Any]) -> Expression:
    branches = [(expression(each["case"]), expression(each["then"])) for each in arguments["branches"]]
    if "default" in arguments:
        branches.append((_literal(True), expression(arguments["default"])))

    def evaluate(document: Document, variables: Variables) -> Any:
        for case, then in branches:
            if is_true(case(document, variables)):
                return then(document, variables)
        raise ServerError(NO_BRANCH, "$switch could not find a matching branch for an input, and no default was given")

    return evaluate


def _comparison(holds: Callable[[Any, Any], bool]) -> Callable[[Sequence[Any]], Expression]:
    def operator(arguments: Sequence[Any]) -> Expression:
        left, right = (expression(each) for each in arguments)
        return lambda document, variables: holds(
            order_of(left(document, variables)), order_of(right(document, variables))
        )

    return operator


def _and(arguments: Sequence[Any]) -> Expression:
    parts = [expression(each) for each in arguments]
    return lambda document, variables: all(is_true(part(document, variables)) for part in parts)


def _not(argument: Any) -> Expression:
    part = expression(*argument) if isinstance(argument, list | tuple) else expression(argument)
    return lambda document, variables: not is_true(part(document, variables))


def _arithmetic(combine: Callable[[Any, Any], Any]) -> Callable[[Sequence[Any]], Expression]:
    def operator(arguments: Sequence[Any]) -> Expression:
        left, right = (expression(each) for each in arguments)

        def evaluate(document: Document, variables: Variables) -> Any:
            values = [left(document, variables), right(document, variables)]
            if any(value is None or value is MISSING for value in values):
                return None
            return combine(*values)

        return evaluate

    return operator


def _sum(left: Any, right: Any) -> Any:
    if type(left) is datetime and is_number(right):
        return left + timedelta(milliseconds=round(right))
    if type(right) is datetime and is_number(left):
        return right + timedelta(milliseconds=round(left))
    if is_number(left) and is_number(right):
        return number(left + right)
    raise ServerError(NOT_A_NUMBER, "$add only supports numeric or date types")


def _difference(left: Any, right: Any) -> Any:
    if type(left) is datetime and type(right) is datetime:
        return number((left - right) // timedelta(milliseconds=1))
    if type(left) is datetime and is_number(right):
        return left - timedelta(milliseconds=round(right))
    if is_number(left) and is_number(right):
        return number(left - right)
    raise ServerError(TYPE_MISMATCH, f"can't $subtract {type(right).__name__} from {type(left).__name__}")


def is_number(value: Any) -> bool:
    """Return whether a stored value is a number with which this module calculates."""
    return isinstance(value, int | float) and type(value) is not bool


def number(value: float) -> float:
    """Return the result of a calculation as it is stored: beyond 64 bits it becomes a floating-point number."""
    if isinstance(value, float):
        return value
    try:
        return integer(int(value))
    except OverflowError:
        return float(value)


def _size(argument: Any) -> Expression:
    part = expression(argument)

    def evaluate(document: Document, variables: Variables) -> Any:
        value = part(document, variables)
        if type(value) is not list:
            raise ServerError(NOT_AN_ARRAY, f"The argument to $size must be an array, but was of type: {value!r}")
        return len(value)

    return evaluate


def _filter(arguments: Mapping[str, Any]) -> Expression:
    if arguments.keys() != {"input", "cond"}:
        raise NotImplementedError(f"$filter with {', '.join(arguments)}")
    source, condition = expression(arguments["input"]), expression(arguments["cond"])

    def evaluate(document: Document, variables: Variables) -> Any:
        values = source(document, variables)
        if values is None or values is MISSING:
            return None
        if type(values) is not list:
            raise ServerError(NOTHING_TO_FILTER, "input to $filter must be an array")
        return [each for each in values if is_true(condition(document, replace(variables, this=each)))]

    return evaluate


_OPERATORS: dict[str, Callable[[Any], Expression]] = {
    "$literal": _literal,
    "$ifNull": _if_null,
    "$cond": _cond,
    "$switch": _switch,
    "$eq": _comparison(lambda left, right: left == right),
    "$gt": _comparison(lambda left, right: left > right),
    "$lt": _comparison(lambda left, right: left < right),
    "$lte": _comparison(lambda left, right: left <= right),
    "$and": _and,
    "$not": _not,
    "$add": _arithmetic(_sum),
    "$subtract": _arithmetic(_difference),
    "$size": _size,
    "$filter": _filter,
}
