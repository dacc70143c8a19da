"""Queries: the conditions that a document must meet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import ge, gt, le, lt
from typing import Any

from shared.memory_database import paths
from shared.memory_database.errors import BAD_VALUE, ServerError
from shared.memory_database.expressions import Variables, expression, is_true
from shared.memory_database.values import MISSING, NULL_RANK, Document, comparable, encoded, is_mapping, key_of, rank

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {"$lt": lt, "$lte": le, "$gt": gt, "$gte": ge}

Predicate = Callable[[Document], bool]
Test = Callable[[Any], bool]
"""A condition on one value, which may be MISSING."""
Query = Mapping[str, Any]


def matcher(query: Query, variables: Variables) -> Predicate:
    """Return a function that says whether a document matches. Raises NotImplementedError for other operators."""
    conditions: list[Predicate] = []
    for name, condition in query.items():
        if name.startswith("$"):
            conditions.append(_logical(name, condition, variables))
        elif is_operators(condition):
            path = name.split(".")
            conditions += [_operator(path, operator, argument, variables) for operator, argument in condition.items()]
        else:
            conditions.append(_any(name.split("."), _equals(condition)))
    return conditions[0] if len(conditions) == 1 else _all(conditions)


def _all(conditions: Sequence[Predicate]) -> Predicate:
    def matches(document: Document) -> bool:
        for condition in conditions:  # noqa: SIM110 - every document of every query comes through here
            if not condition(document):
                return False
        return True

    return matches


def is_operators(condition: Any) -> bool:
    """Return whether a condition consists of operators, and is not a value to be equal to."""
    return is_mapping(condition) and next(iter(condition), "").startswith("$")


def equalities(query: Query) -> Iterator[tuple[str, Any]]:
    """Yield the fields that every matching document has, with their values: an upsert begins with these."""
    for name, condition in query.items():
        if name == "$and":
            for each in condition:
                yield from equalities(each)
        elif name.startswith("$"):
            continue
        elif not is_operators(condition):
            yield name, encoded(condition)
        elif "$eq" in condition:
            yield name, encoded(condition["$eq"])
        elif len(condition.get("$in", ())) == 1:
            yield name, encoded(condition["$in"][0])


def matched_place(query: Query, array: str, values: Sequence[Any], variables: Variables) -> int:
    """Return the place of the element by which a query matches an array; `$` stands for it in an update."""
    tests: list[Test] = []
    for name, condition in query.items():
        if name == array and is_operators(condition) and "$elemMatch" in condition:
            tests.append(_of_element(condition["$elemMatch"], variables))
        elif name.startswith(f"{array}."):
            within = matcher({name.removeprefix(f"{array}."): condition}, variables)
            tests.append(_of_documents(within))
        elif name == array:
            raise NotImplementedError(f"`{array}.$` by another condition than $elemMatch")
    if len(tests) != 1:
        raise NotImplementedError(f"`{array}.$` by {len(tests)} conditions")
    found = next((place for place, value in enumerate(values) if tests[0](value)), None)
    if found is None:
        raise ServerError(BAD_VALUE, "The positional operator did not find the match needed from the query.")
    return found


def _of_documents(within: Predicate) -> Test:
    return lambda value: type(value) is dict and within(value)


def _logical(name: str, condition: Any, variables: Variables) -> Predicate:
    if name == "$expr":
        evaluate = expression(condition)
        return lambda document: is_true(evaluate(document, variables))
    if name not in ("$and", "$or", "$nor"):
        raise NotImplementedError(f"the query operator {name}")
    if not condition:
        raise ServerError(BAD_VALUE, f"{name} argument must be a non-empty array")
    parts = [matcher(each, variables) for each in condition]
    if name == "$and":
        return _all(parts)
    if name == "$or":
        return lambda document: any(part(document) for part in parts)
    return lambda document: not any(part(document) for part in parts)


def _operator(path: paths.Path, operator: str, argument: Any, variables: Variables) -> Predicate:
    match operator:
        case "$ne":
            return _none(path, _equals(argument))
        case "$nin":
            return _none(path, _among(argument))
        case "$exists":
            exists = _any(path, _is_there)
            return exists if argument else lambda document: not exists(document)
        case "$not":
            if not is_operators(argument):
                raise NotImplementedError("$not of anything but operators")
            passes = _all([_operator(path, each, value, variables) for each, value in argument.items()])
            return lambda document: not passes(document)
        case "$elemMatch":
            return _any(path, _has_element(_of_element(argument, variables)), expanded=False)
    return _any(path, _test(operator, argument))


def _test(operator: str, argument: Any) -> Test:
    if operator == "$eq":
        return _equals(argument)
    if operator == "$in":
        return _among(argument)
    if operator in _COMPARISONS:
        return _ordered(operator, encoded(argument))
    raise NotImplementedError(f"the query operator {operator}")


def _any(path: paths.Path, test: Test, *, expanded: bool = True) -> Predicate:
    """Return whether a value at the path passes; of an array, it or any of its elements."""
    if len(path) > 1:
        return lambda document: any(_passes(value, test, expanded) for value in paths.candidates(document, path))
    name = path[0]

    def passes(document: Document) -> bool:
        value = document.get(name, MISSING)
        return test(value) or (type(value) is list and expanded and any(map(test, value)))

    return passes


def _none(path: paths.Path, test: Test) -> Predicate:
    found = _any(path, test)
    return lambda document: not found(document)


def _passes(value: Any, test: Test, expanded: bool) -> bool:
    return test(value) or (expanded and type(value) is list and any(map(test, value)))


def _is_there(value: Any) -> bool:
    return value is not MISSING


def _is_null(value: Any) -> bool:
    return value is None or value is MISSING


def _equals(argument: Any) -> Test:
    wanted = encoded(argument)
    if wanted is None:
        return _is_null
    if type(wanted) is str:
        return lambda value: type(value) is str and value == wanted
    key = key_of(wanted)
    return lambda value: value is not MISSING and key_of(value) == key


def _among(argument: Any) -> Test:
    keys = {key_of(encoded(each)) for each in argument}
    if None in keys:
        return lambda value: value is MISSING or key_of(value) in keys
    return lambda value: value is not MISSING and key_of(value) in keys


def _ordered(operator: str, argument: Any) -> Test:
    wanted_rank = rank(argument)
    if wanted_rank == NULL_RANK:
        return _is_null if operator in ("$lte", "$gte") else lambda _: False
    if type(argument) is list:
        raise NotImplementedError(f"{operator} of an array")
    wanted, compare = comparable(argument), _COMPARISONS[operator]
    return lambda value: rank(value) == wanted_rank and compare(comparable(value), wanted)


def _of_element(condition: Mapping[str, Any], variables: Variables) -> Test:
    """Return the condition of an $elemMatch on one element."""
    if is_operators(condition):
        tests = [_test(operator, argument) for operator, argument in condition.items()]
        return lambda value: all(test(value) for test in tests)
    return _of_documents(matcher(condition, variables))


def _has_element(test: Test) -> Test:
    return lambda value: type(value) is list and any(map(test, value))
