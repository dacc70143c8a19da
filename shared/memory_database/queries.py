"""Finding documents: by their ids where a query names them, sorted, and through aggregation pipelines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.memory_database import paths
from shared.memory_database.expressions import Variables, expression, is_number, number
from shared.memory_database.filters import Query, is_operators, matcher
from shared.memory_database.storage import View
from shared.memory_database.values import MISSING, Document, encoded, key_of, order_of

Order = Sequence[tuple[str, int]]


def find(view: View, query: Query, variables: Variables) -> list[Document]:
    """Return the documents that match: by id if the query names ids, else in the order of their insertion."""
    found, rest = _named(view, query)
    return list(filter(matcher(rest, variables), found) if rest else found)


def _named(view: View, query: Query) -> tuple[Iterable[Document], Query]:
    """Return the documents among which are those that match, and the conditions that they need not meet."""
    if "_id" not in query:
        return view.values(), query
    named = query["_id"]
    rest: Query = {name: condition for name, condition in query.items() if name != "_id"}
    if not is_operators(named):
        keys = [key_of(encoded(named))]
    elif "$in" in named:
        ids = {key_of(value): value for value in encoded(list(named["$in"]))}
        keys = sorted(ids, key=lambda key: order_of(ids[key])) if len(ids) > 1 else list(ids)
        rest = rest if len(named) == 1 else query
    else:
        return view.values(), query
    return [document for key in keys if (document := view.get(key)) is not None], rest


def in_order(documents: Iterable[Document], order: Order) -> list[Document]:
    """Sort documents; of an array, its least or its greatest element counts."""
    found = list(documents)
    for name, direction in reversed(order):
        if direction not in (1, -1):
            raise NotImplementedError(f"sorting by {direction!r}")
        path, descending = name.split("."), direction < 0
        found.sort(key=lambda document: _place(document, path, descending), reverse=descending)
    return found


def _place(document: Document, path: paths.Path, descending: bool) -> tuple[int, Any]:
    if len(path) == 1:
        value = document.get(path[0])
        if type(value) is not list:
            return order_of(value)
    places = [place for value in paths.candidates(document, path) for place in _places(value)] or [order_of(None)]
    return max(places) if descending else min(places)


def _places(value: Any) -> list[tuple[int, Any]]:
    if type(value) is not list:
        return [order_of(None if value is MISSING else value)]
    return [*map(order_of, value)] or [order_of(MISSING)]  # an empty array comes before a null


def aggregated(view: View, pipeline: Sequence[Mapping[str, Any]], variables: Variables) -> list[Document]:
    """Return the results of a pipeline. Raises NotImplementedError for other stages."""
    documents: Iterable[Document] = view.values()
    for stage in pipeline:
        (name, argument), *more = stage.items()
        if more:
            raise NotImplementedError(f"the stage {', '.join(stage)}")
        match name:
            case "$match":
                documents = list(filter(matcher(argument, variables), documents))
            case "$sort":
                documents = in_order(documents, list(argument.items()))
            case "$limit":
                documents = list(documents)[:argument]
            case "$group":
                documents = _grouped(documents, argument, variables)
            case _:
                raise NotImplementedError(f"the stage {name}")
    return list(documents)


def _grouped(documents: Iterable[Document], argument: Mapping[str, Any], variables: Variables) -> list[Document]:
    """Group documents, in the order in which the groups appear."""
    by = expression(argument["_id"])
    totals = {name: _accumulator(each) for name, each in argument.items() if name != "_id"}
    members: dict[Any, tuple[Any, list[Document]]] = {}
    for document in documents:
        value = by(document, variables)
        value = None if value is MISSING else value
        members.setdefault(key_of(value), (value, []))[1].append(document)
    return [
        {"_id": value, **{name: total(of_group, variables) for name, total in totals.items()}}
        for value, of_group in members.values()
    ]


def _accumulator(given: Mapping[str, Any]) -> Any:
    (name, argument), *more = given.items()
    if more or name not in ("$first", "$sum"):
        raise NotImplementedError(f"the accumulator {', '.join(given)}")
    evaluate = expression(argument)

    def first(documents: Sequence[Document], variables: Variables) -> Any:
        value = evaluate(documents[0], variables)
        return None if value is MISSING else value

    def total(documents: Sequence[Document], variables: Variables) -> Any:
        return number(sum(filter(is_number, (evaluate(each, variables) for each in documents))))

    return first if name == "$first" else total
