"""The messages on the wire, against a stored sample of each: changing one is a visible act."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.bus.reading import MAX_BODY_BYTES
from shared.contracts import (
    ALL_MESSAGES,
    BY_ROUTING_KEY,
    Message,
    OrderConfirmed,
    OrderCreated,
    OrderMessage,
    OrderRefunded,
)
from shared.contracts.orders import Item, OrderSnapshot

SAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "samples" / "messages.json").read_text(encoding="utf-8")
)
EVERY_MESSAGE = pytest.mark.parametrize("contract", ALL_MESSAGES, ids=lambda contract: contract.routing_key)
ORDER_MESSAGES = [message for message in ALL_MESSAGES if issubclass(message, OrderMessage)]


def sample(contract: type[Message]) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(SAMPLES[contract.routing_key])
    return found


def read(contract: type[Message], body: Any) -> Message:
    return contract.model_validate_json(json.dumps(body))


def is_refused(contract: type[Message], body: bytes) -> bool:
    try:
        contract.model_validate_json(body)
    except ValidationError:
        return True
    return False


def test_every_message_has_a_unique_routing_key_and_a_sample() -> None:
    assert len(BY_ROUTING_KEY) == len(ALL_MESSAGES)
    assert SAMPLES.keys() == BY_ROUTING_KEY.keys()


@EVERY_MESSAGE
def test_a_message_is_read_and_written_as_its_sample(contract: type[Message]) -> None:
    assert json.loads(read(contract, sample(contract)).to_json()) == sample(contract)


@EVERY_MESSAGE
def test_the_sample_shows_every_field(contract: type[Message]) -> None:
    for model, body in parts(contract, sample(contract)):
        assert body.keys() == {field.alias for field in model.model_fields.values()}, model.__name__


def parts(model: type[BaseModel], body: dict[str, Any]) -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """The message and every model inside it, each with its part of the body."""
    yield model, body
    value = model.model_validate_json(json.dumps(body))
    for name, field in model.model_fields.items():
        inner = getattr(value, name)
        found = inner[0] if isinstance(inner, tuple) else inner
        if isinstance(found, BaseModel):
            part = body[field.alias or name]
            yield from parts(type(found), part[0] if isinstance(part, list) else part)


@EVERY_MESSAGE
def test_the_order_in_an_event_is_as_described(contract: type[Message]) -> None:
    if (order := sample(contract).get("order")) is not None:
        described = OrderSnapshot.model_validate_json(json.dumps(order))
        optional = {"holdId", "delivery"}
        assert order.keys() | optional == {field.alias for field in OrderSnapshot.model_fields.values()}
        assert described.status in contract.routing_key.upper() or contract is OrderRefunded


def test_an_event_keeps_the_fields_of_a_newer_sender() -> None:
    body = sample(OrderConfirmed)
    body["order"] |= {"addedLater": {"deep": [1, None]}}
    assert json.loads(read(OrderConfirmed, body).to_json()) == body


# Besides the order id. Making another field required breaks the senders of before: think twice.
REQUIRED = {
    "order.created": ["userId", "items", "totalAmount"],
    "stock.reserved": ["provisioning"],  # the sample reserves a server
    "stock.reservation_failed": ["reason"],
    "payment.processed": ["transactionId"],
    "payment.failed": ["reason"],
    "stock.release": [],
    "stock.released": [],
    "payment.capture": [],
    "payment.captured": [],
    "payment.capture_failed": ["reason"],
    "payment.refund": [],
    "payment.refunded": ["status"],
    "payment.refund_part": ["refundId", "amount"],
    "payment.refunded_part": ["refundId"],
    "payment.refund_part_failed": ["refundId", "reason"],
    "stock.return": ["refundId", "items"],
    "stock.returned": ["refundId"],
    "provisioning.requested": ["userId", "package"],
    "provisioning.progress": ["step", "message"],
    "provisioning.completed": ["server"],
    "provisioning.failed": ["reason"],
    "provisioning.cancel": [],
    "stock.ship": [],
    "stock.shipped": [],
    "order.confirmed": ["userId", "totalAmount"],
    "order.provisioning": ["userId", "totalAmount"],
    "order.completed": ["userId", "totalAmount"],
    "order.cancelled": ["userId", "totalAmount"],
    "order.failed": ["userId", "totalAmount"],
    "order.refunded": ["userId", "refundId", "amount"],
    "package.low_ips": ["package", "ipv4"],
    "dead_letter.handled": ["letterId", "messageId"],
    "consumer.pauses_changed": ["service", "changedAt", "pauses"],
}


@EVERY_MESSAGE
def test_a_reader_asks_for_no_more_than_it_needs(contract: type[Message]) -> None:
    body = sample(contract)
    required = {"orderId", *REQUIRED[contract.routing_key]}
    for name in body:
        without = {key: value for key, value in body.items() if key != name}
        if name in required:
            with pytest.raises(ValidationError):
                read(contract, without)
        else:
            read(contract, without)


def test_a_sender_need_not_count() -> None:
    """The counters are optional: without them, a request is the first, and other messages belong to the current run."""
    bodies = {key: {k: v for k, v in SAMPLES[key].items() if k not in ("run", "sequence")} for key in SAMPLES}
    counts = {
        key: (getattr(message, "run", None), getattr(message, "sequence", None))
        for key, body in bodies.items()
        for message in [read(BY_ROUTING_KEY[key], body)]
        if body != SAMPLES[key]
    }
    assert counts == {
        "provisioning.requested": (1, None),
        "provisioning.progress": (None, 0),
        "provisioning.failed": (0, None),
        "provisioning.cancel": (0, None),
    }


@EVERY_MESSAGE
def test_fields_that_a_reader_does_not_know_are_ignored(contract: type[Message]) -> None:
    extended = sample(contract) | {"addedLater": {"deep": [1, None]}}
    assert read(contract, extended) == read(contract, sample(contract))


@EVERY_MESSAGE
def test_a_message_does_not_change(contract: type[Message]) -> None:
    with pytest.raises(ValidationError):
        read(contract, sample(contract)).order_id = "other"  # type: ignore[attr-defined] # not every message has one


@pytest.mark.parametrize(
    "order_id",
    [{"$gt": ""}, ["o1"], 7, True, None, "", "a" * 65, "o 1", "o.1", "$where", "o/1", "o1\n", "o\x001", "ö1"],
    ids=repr,
)
def test_an_order_id_is_nothing_but_a_plain_name(order_id: Any) -> None:
    for contract in ORDER_MESSAGES:
        assert is_refused(contract, json.dumps(sample(contract) | {"orderId": order_id}).encode()), contract


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"7", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"orderId":"\\ud800"}']
)
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    for contract in ALL_MESSAGES:
        assert is_refused(contract, body), contract


@EVERY_MESSAGE
def test_every_field_refuses_other_types(contract: type[Message]) -> None:
    for name, value in sample(contract).items():
        wrong: list[Any] = [[[1]], {"$gt": ""}] if not isinstance(value, dict) else [[[1]], 7]
        wrong += ["1", "true", ""] if not isinstance(value, str) else [1, 1.5, True]
        for other in wrong:
            with pytest.raises(ValidationError):
                read(contract, sample(contract) | {name: other})


ORDER = SAMPLES["order.created"]


def with_amount(text: str) -> bytes:
    """The order with the total as that JSON text."""
    return json.dumps(ORDER | {"totalAmount": 0}).replace('"totalAmount": 0', f'"totalAmount": {text}').encode()


@pytest.mark.parametrize("text", ["0", "10", "10.0", "1e1", "19.99", "0.01", "1000000000000"])
def test_amounts_are_read_exactly(text: str) -> None:
    order = OrderCreated.model_validate_json(with_amount(text))
    assert order.total_amount == round(float(text) * 100)
    assert json.loads(order.to_json())["totalAmount"] == float(text)


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", f"1{'0' * 400}", "1000000000000.01"),
        *("-0.01", "-1", "0.001", "19.999", "1e-9", '"10"', "true", "null", '{"$numberInt":"1"}'),
    ],
)
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        OrderCreated.model_validate_json(with_amount(text))


def test_amounts_are_minor_units_where_a_message_is_made() -> None:
    item = Item(product_id="p1", quantity=1, price=1999)
    order = OrderCreated(order_id="o1", user_id="u1", items=(item,), total_amount=1999)
    assert (order.total_amount, order.items[0].price) == (1999, 1999)
    assert json.loads(order.to_json())["totalAmount"] == 19.99


@pytest.mark.parametrize(
    "change",
    [
        {"items": []},
        {"items": [ORDER["items"][0]] * 101},
        {"items": {"0": ORDER["items"][0]}},
        {"items": [ORDER["items"][0] | {"quantity": 0}]},
        {"items": [ORDER["items"][0] | {"quantity": -1}]},
        {"items": [ORDER["items"][0] | {"quantity": 1.5}]},
        {"items": [ORDER["items"][0] | {"quantity": 10**30}]},
        {"items": [ORDER["items"][0] | {"price": -0.01}]},
        {"items": [ORDER["items"][0] | {"productId": {"$gt": ""}}]},
        {"items": [ORDER["items"][0] | {"productId": "p\u00001"}]},
        {"userId": "u" * 129},
        {"currency": "usd"},
        {"currency": "EURO"},
        {"payment": {"method": "cash"}},
        {"payment": "card"},
        {"payment": {"token": {"$ne": None}}},
        {"delivery": {"slot": 7}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_an_order_with_hostile_or_senseless_fields_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(OrderCreated, ORDER | change)


@pytest.mark.parametrize(
    ("routing_key", "path"),
    [
        ("stock.reserved", ["provisioning", "ram"]),
        ("provisioning.requested", ["ram"]),
        ("provisioning.requested", ["run"]),
        ("provisioning.progress", ["attempt"]),
        ("provisioning.progress", ["sequence"]),
        ("provisioning.failed", ["run"]),
        ("provisioning.cancel", ["run"]),
        ("package.low_ips", ["ipv4"]),
    ],
)
@pytest.mark.parametrize("number", [-1, 2**31, 10**30, "2048", 1.5, True])
def test_numbers_fit_a_database(routing_key: str, path: list[str], number: Any) -> None:
    body = sample(BY_ROUTING_KEY[routing_key])
    part = body
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = number
    with pytest.raises(ValidationError):
        read(BY_ROUTING_KEY[routing_key], body)


LONGEST_CHARACTER = len("\\u0000")
LONGEST_SCALAR = len('"2023-11-14T21:45:00.000000+00:00"')


def most_bytes(schema: dict[str, Any], definitions: dict[str, Any]) -> int:
    """The most bytes of JSON that the schema allows; fails where it sets no bound."""
    match schema:
        case {"$ref": reference}:
            return most_bytes(definitions[reference.rpartition("/")[2]], definitions)
        case {"anyOf": choices}:
            return max(most_bytes(choice, definitions) for choice in choices)
        case {"const": value}:
            return len(json.dumps(value))
        case {"enum": values}:
            return max(len(json.dumps(value)) for value in values)
        case {"type": "object", "properties": properties}:
            return 2 + sum(len(name) + 4 + most_bytes(value, definitions) for name, value in properties.items())
        case {"type": "array", "maxItems": most, "items": item}:
            return 2 + int(most) * (1 + most_bytes(item, definitions))
        case {"type": "string", "maxLength": most}:
            return 2 + int(most) * LONGEST_CHARACTER
        case {"type": "string", "pattern": pattern} if most := re.fullmatch(r"\^\[.*\]\{(?:\d+,)?(\d+)\}\$", pattern):
            return 2 + int(most[1]) * LONGEST_CHARACTER
        case {"type": "integer" | "number" | "boolean" | "null"} | {"format": "date-time"}:
            return LONGEST_SCALAR
    raise AssertionError(f"nothing bounds {schema}")


@EVERY_MESSAGE
def test_the_largest_legal_message_is_far_below_what_a_reader_takes(contract: type[Message]) -> None:
    schema = contract.model_json_schema()
    assert most_bytes(schema, schema.get("$defs", {})) <= MAX_BODY_BYTES // 2
