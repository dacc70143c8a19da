"""One tree of errors for the whole product, drawn in the docstring of shared.errors."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import inventory_service
import operations
import order_service
import payment_service
import provisioning_service
import shared
from shared import errors
from shared.failpoints import SimulatedCrashError

PACKAGES = (inventory_service, operations, order_service, payment_service, provisioning_service, shared)
OUTSIDE = {SimulatedCrashError.__name__}
"""Not caught by anything, not even as an Exception."""
PLAYED = "shared.memory_database."
"""Where errors are MongoDB's: its callers get the driver's exceptions."""

Parents = dict[str, str | None]


def product_errors() -> Iterator[type[BaseException]]:
    """Every class of exceptions that the product defines."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.startswith(PLAYED):
                continue
            module = importlib.import_module(found.name)
            for _, member in inspect.getmembers(module, inspect.isclass):
                if issubclass(member, BaseException) and member.__module__ == module.__name__:
                    yield member


PUBLIC = [error for error in product_errors() if not error.__name__.startswith("_")]


def drawn() -> Parents:
    """The parent of each error in the drawing; an error is indented by four characters more than its parent."""
    parents: Parents = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r" {4}([ │├└─]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            assert found[2] not in parents, f"{found[2]} is drawn twice"
            parents[found[2]] = path[-2] if depth else None
    return parents


def test_no_two_errors_have_the_same_name() -> None:
    names = [error.__name__ for error in product_errors()]
    assert sorted(names) == sorted(set(names))


def test_the_drawing_of_the_tree_is_current() -> None:
    declared: Parents = {
        error.__name__: error.__base__.__name__ if error.__base__ and error is not errors.OrdersagaError else None
        for error in PUBLIC
        if error.__name__ not in OUTSIDE
    }
    assert drawn() == declared


def test_every_error_of_the_product_is_caught_as_one() -> None:
    assert [error for error in PUBLIC if not issubclass(error, errors.OrdersagaError)] == [SimulatedCrashError]
    assert not issubclass(SimulatedCrashError, Exception)
