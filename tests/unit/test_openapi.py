"""The published documents are as good as a person would write them: names, words, examples, every message."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from pydantic import TypeAdapter

from shared.asyncapi import asyncapi
from shared.contracts import ALL_MESSAGES, BY_ROUTING_KEY
from shared.openapi import TAGS, words_of
from shared.problems import PROBLEM_TYPES
from shared.topology import INBOXES
from tests.support.api_compatibility import current
from tests.support.api_samples import applications
from tests.support.routes import routes_of

DOCUMENTS = {name: document for name, document in current().items() if "openapi" in document}
PROBLEM = "application/problem+json"


class Operation(NamedTuple):
    """An operation of a published document."""

    name: str
    described: dict[str, Any]
    document: Any

    def answers(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for code, answer in self.described["responses"].items():
            name = answer.get("$ref", "").rpartition("/")[2]
            yield int(code), self.document["components"]["responses"][name] if name else answer


OPERATIONS = [
    Operation(f"{name}: {method.upper()} {path}", described, document)
    for name, document in DOCUMENTS.items()
    for path, methods in document["paths"].items()
    for method, described in methods.items()
]
EVERY_OPERATION = pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.name for operation in OPERATIONS])


@EVERY_OPERATION
def test_an_operation_is_described(operation: Operation) -> None:
    described = operation.described
    assert described["operationId"].isidentifier()
    assert 0 < len(described["summary"]) <= 120
    assert described["tags"]
    assert "security" in described
    named = {tag["name"] for tag in operation.document["tags"]}
    assert set(described["tags"]) <= named


@EVERY_OPERATION
def test_every_body_and_every_problem_has_an_example(operation: Operation) -> None:
    bodies = [operation.described["requestBody"]] if "requestBody" in operation.described else []
    for code, answer in operation.answers():
        if code < 400:
            bodies.append(answer)
        else:
            for name in answer["content"][PROBLEM]["examples"]:
                example = operation.document["components"]["examples"][name]["value"]
                assert (example["type"], example["status"]) == (PROBLEM_TYPES[name].uri, code)
    for body in bodies:
        for media, content in body.get("content", {}).items():
            assert media != "application/json" or "example" in content or not content.get("schema")


def test_answers_declare_the_headers_of_waiting_and_of_repeating() -> None:
    order = DOCUMENTS["order"]
    for path, code in (("/orders", "200"), ("/orders", "202"), ("/order", "202")):
        declared = order["paths"][path]["post"]["responses"][code]["headers"]
        assert {"Idempotent-Replayed", "Preference-Applied"} <= declared.keys()


@EVERY_OPERATION
def test_headers_are_declared_where_they_are_sent(operation: Operation) -> None:
    has_key = any(parameter["name"] == "Idempotency-Key" for parameter in operation.described.get("parameters", ()))
    for code, answer in operation.answers():
        declared = answer["headers"].keys()
        assert declared <= operation.document["components"]["headers"].keys()
        assert ("Idempotent-Replayed" in declared) == (has_key and code < 400)
        assert ("Location" in declared) == (code in (201, 202))
        limited = code == 429 or (code < 400 and {"bearer": []} in operation.described["security"])
        assert ({"RateLimit", "RateLimit-Policy"} <= declared) == limited


@pytest.mark.parametrize("name", DOCUMENTS)
def test_operations_are_named_apart(name: str) -> None:
    names = Counter(o.described["operationId"] for o in OPERATIONS if o.document is DOCUMENTS[name])
    assert [each for each, count in names.items() if count > 1] == []


def test_every_tag_is_explained() -> None:
    used = {tag["name"] for document in DOCUMENTS.values() for tag in document["tags"]}
    assert used - {"provider", "control"} <= TAGS.keys()


def test_the_examples_of_bodies_are_accepted() -> None:
    """As the schema may allow what a validator refuses: a sum that is wrong, two fields that exclude each other."""
    tried = 0
    for app in applications():
        document = app.openapi()
        for route in routes_of(app):
            path = route.path_format
            if route.body_field is None or path not in document["paths"]:
                continue
            for method in route.methods or ():
                content = document["paths"][path][method.lower()]["requestBody"]["content"]
                model: Any = route.body_field.field_info.annotation
                TypeAdapter(model).validate_python(content["application/json"]["example"])
                tried += 1
    assert tried > 20


def test_a_docstring_gives_the_summary_and_the_text() -> None:
    assert words_of("Cancel an order; a server when its step ends.\n\n    Twice is fine.") == (
        "Cancel an order",
        "Cancel an order; a server when its step ends.\n\n    Twice is fine.",
    )
    assert words_of("One order.") == ("One order", "One order.")
    assert words_of(None) == (None, None)


def test_every_message_is_in_the_asyncapi_document_with_its_senders_and_receivers() -> None:
    document = asyncapi()
    assert {channel["address"] for channel in document["channels"].values()} == BY_ROUTING_KEY.keys()
    operations = Counter(name for name in document["operations"] if "Receives" in name)
    assert len(operations) == sum(map(len, INBOXES.values()))
    for message in ALL_MESSAGES:
        assert any(name.endswith(f"Sends{message.__name__}") for name in document["operations"]), message


@pytest.mark.parametrize("message", ALL_MESSAGES)
def test_the_example_of_a_message_is_one(message: Any) -> None:
    [example] = asyncapi()["components"]["messages"][message.__name__]["examples"]
    message.model_validate_json(json.dumps(example["payload"]))
