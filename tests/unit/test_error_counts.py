"""However many mistakes an input has, few are collected: one bad message or request costs its reader little.

The models are found by looking for them, so that a new one is covered without being listed here.
"""

import importlib
import json
import pkgutil
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings

import inventory_service
import operations
import order_service
import payment_service
import provisioning_service
import shared
from shared.bus.reading import MAX_BODY_BYTES
from shared.contracts import ALL_MESSAGES, Message
from shared.contracts.base import WireModel
from shared.http import View
from tests.unit.test_contracts import sample

MANY = 100_000
MOST_ERRORS = 110
"""One for each of the 100 lines that an order may have, and a few for fields that are missing beside them."""
MOST_BYTES = 5 * 1024 * 1024
"""Only Python objects: the errors are in the validator's own memory, represented here by their number."""
BYTES_PER_CHARACTER = 32
"""The most that any JSON becomes as Python objects: `{},` is a dictionary of 64 bytes and its place in a list."""
PACKAGES = (inventory_service, operations, order_service, payment_service, provisioning_service, shared)

NAMES = {f"field{number}": 0 for number in range(MANY)}
HOSTILE: dict[str, list[Any]] = {
    "empty objects": [{}] * MANY,
    "empty lists": [[]] * MANY,
    "numbers": [0] * MANY,
    "texts": [""] * MANY,
    "lists of numbers": [[0] * (MANY // 100)] * 100,
    "objects of names": [dict.fromkeys(list(NAMES)[: MANY // 100], 0)] * 100,
}
# As JSON, written once: that takes longer than all reading of it.
HOSTILE_TEXTS = [json.dumps(value) for value in HOSTILE.values()]
NAMES_TEXT = json.dumps(NAMES)


def product_models() -> Iterator[type[BaseModel]]:
    """Every model that reads what others send: not the answers, which are written, nor settings and own files."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for model in _subclasses(BaseModel):
        ours = model.__module__.partition(".")[0] in {package.__name__ for package in PACKAGES}
        if ours and model.__module__ != "operations.backup.manifest" and not issubclass(model, (View, BaseSettings)):
            yield model


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


MODELS = list(dict.fromkeys(product_models()))
# A request reaches its model as parsed JSON, a message as bytes.
BODIES = [model for model in MODELS if not issubclass(model, WireModel) and model.model_fields]
EVERY_BODY = pytest.mark.parametrize("model", BODIES, ids=lambda model: f"{model.__module__}.{model.__name__}")
EVERY_MESSAGE = pytest.mark.parametrize("contract", ALL_MESSAGES, ids=lambda contract: contract.routing_key)


def errors_and_memory(model: type[BaseModel], given: Any) -> tuple[int, int]:
    """Validate; return how many errors are collected, and the most bytes of Python objects it took."""
    tracemalloc.start()
    try:
        if isinstance(given, bytes):
            model.model_validate_json(given)
        else:
            model.model_validate(given)
    except ValidationError as error:
        return error.error_count(), tracemalloc.get_traced_memory()[1]
    else:
        return 0, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def is_cheap(model: type[BaseModel], given: Any, most_bytes: int = MOST_BYTES) -> None:
    errors, memory = errors_and_memory(model, given)
    assert errors <= MOST_ERRORS
    assert memory < most_bytes


def hostile_forms(body: Any) -> Iterator[str]:
    """The body with each of its lists, at any depth, full of mistakes, and each of its objects full of other names."""
    if isinstance(body, dict):
        texts = {name: json.dumps(value) for name, value in body.items()}
        yield _object(texts, NAMES_TEXT[1:-1])
        for name, value in body.items():
            yield from (_object(texts | {name: changed}) for changed in hostile_forms(value))
    elif isinstance(body, list):
        yield from HOSTILE_TEXTS
        text = json.dumps(body)[1:-1]
        yield f"[{', '.join([text] * (MAX_BODY_BYTES // (len(text) + 2)))}]"
        yield from (f"[{changed}]" for changed in hostile_forms(body[0]))


def _object(texts: dict[str, str], *further: str) -> str:
    """The JSON object with these values, and further members."""
    members = [f"{json.dumps(name)}: {text}" for name, text in texts.items()]
    return f"{{{', '.join([*members, *further])}}}"


@EVERY_MESSAGE
def test_a_message_full_of_mistakes_costs_little(contract: type[Message]) -> None:
    for body in hostile_forms(sample(contract)):
        # The order in an event passes through whole: its objects take as much as the text allows.
        passes = "order" in contract.model_fields
        is_cheap(contract, body.encode(), max(MOST_BYTES, BYTES_PER_CHARACTER * len(body)) if passes else MOST_BYTES)


@EVERY_BODY
def test_a_request_full_of_mistakes_costs_little(model: type[BaseModel]) -> None:
    is_cheap(model, NAMES)
    for field in model.model_fields.values():
        for hostile in (*HOSTILE.values(), NAMES):
            is_cheap(model, {field.alias: hostile})


def test_the_bodies_of_all_services_are_found() -> None:
    services = {"inventory_service", "order_service", "payment_service", "provisioning_service"}
    assert services <= {model.__module__.partition(".")[0] for model in BODIES}
