"""The contract against the released one: what disappears or becomes stricter is found, with its name."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.api_compatibility import all_breaks, breaks, surface

BODY = {
    "type": "object",
    "required": ["userId"],
    "additionalProperties": False,
    "properties": {
        "userId": {"type": "string", "maxLength": 128},
        "method": {"type": "string", "enum": ["card", "retainer"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "count": {"type": "integer", "minimum": 1, "maximum": 100},
        "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
        "code": {"type": "string"},
        "amount": {"type": "number", "multipleOf": 0.01},
    },
}
VIEW = {
    "type": "object",
    "required": ["orderId", "status", "total"],
    "properties": {
        "orderId": {"type": "string"},
        "status": {"type": "string", "enum": ["PENDING", "CONFIRMED"]},
        "total": {"type": "number"},
        "parent": {"anyOf": [{"$ref": "#/components/schemas/View"}, {"type": "null"}]},
        "paidBy": {"anyOf": [{"$ref": "#/components/schemas/Card"}, {"$ref": "#/components/schemas/Retainer"}]},
        "slot": {"allOf": [{"$ref": "#/components/schemas/Item"}, {"$ref": "#/components/schemas/Times"}]},
    },
}
CARD = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"const": "card"}, "other": {"$ref": "#/components/schemas/Card"}},
}
RETAINER = {
    "type": "object",
    "required": ["kind", "left"],
    "properties": {
        "kind": {"const": "retainer"},
        "left": {"type": "number"},
        "other": {"$ref": "#/components/schemas/Retainer"},
    },
}
TIMES = {"type": "object", "required": ["from"], "properties": {"from": {"type": "string"}}}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/orders": {
            "post": {
                "operationId": "placeOrder",
                "security": [{"bearer": []}],
                "x-permission": "orders:place",
                "parameters": [{"in": "header", "name": "Idempotency-Key", "schema": {"type": "string"}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}},
                "responses": {
                    "202": {
                        "headers": {"Location": {"$ref": "#/components/headers/Location"}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/View"}}},
                    },
                    "409": {"$ref": "#/components/responses/Conflict"},
                },
            },
            "get": {"operationId": "listOrders", "security": [], "responses": {"200": {}}},
        }
    },
    "components": {
        "schemas": {
            "Body": BODY,
            "View": VIEW,
            "Item": {"type": "object", "properties": {"id": {"type": "string"}}},
            "Card": CARD,
            "Retainer": RETAINER,
            "Times": TIMES,
        },
        "responses": {"Conflict": {"headers": {"Retry-After": {"schema": {"type": "integer"}}}, "content": {}}},
        "examples": {"conflict": {"value": {}}},
        "headers": {"Location": {"required": True, "schema": {"type": "string", "enum": ["a", "b"]}}},
    },
}


def place(document: dict[str, Any]) -> Any:
    return document["paths"]["/orders"]["post"]


def location(document: dict[str, Any]) -> Any:
    return document["components"]["headers"]["Location"]


def body(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["Body"]


def view(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["View"]


def schema(document: dict[str, Any], name: str) -> Any:
    return document["components"]["schemas"][name]


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "GET /orders is gone": lambda d: d["paths"]["/orders"].pop("get"),
    "POST /orders 202.total is gone": lambda d: view(d)["properties"].pop("total"),
    "POST /orders.note is gone": lambda d: body(d)["properties"].pop("note"),
    "POST /orders.note is required now": lambda d: body(d)["required"].append("note"),
    "POST /orders.shop is required now": lambda d: (
        body(d)["properties"].update(shop={"type": "string"}),
        body(d)["required"].append("shop"),
    ),
    "the value retainer of POST /orders.method is gone": lambda d: body(d)["properties"]["method"]["enum"].pop(),
    "POST /orders.code takes only a, b now": lambda d: body(d)["properties"]["code"].update(enum=["a", "b"]),
    "the value CONFIRMED of POST /orders 202.status is gone": lambda d: view(d)["properties"]["status"]["enum"].pop(),
    "POST /orders.note does not take null any more": lambda d: body(d)["properties"].update(note={"type": "string"}),
    "POST /orders 202.orderId may be null now": lambda d: view(d)["properties"].update(
        orderId={"anyOf": [{"type": "string"}, {"type": "null"}]}
    ),
    "POST /orders 202.total may be absent now": lambda d: view(d)["required"].remove("total"),
    "POST /orders 202.total may be string now": lambda d: view(d)["properties"].update(total={"type": "string"}),
    "the most maximum of POST /orders.count is 10 now": lambda d: body(d)["properties"]["count"].update(maximum=10),
    "the least minimum of POST /orders.count is 2 now": lambda d: body(d)["properties"]["count"].update(minimum=2),
    "the most maximum length of POST /orders.userId is 9 now": lambda d: body(d)["properties"]["userId"].update(
        maxLength=9
    ),
    "the pattern of POST /orders.code is ^a$ now": lambda d: body(d)["properties"]["code"].update(pattern="^a$"),
    "the format of POST /orders.code is uuid now": lambda d: body(d)["properties"]["code"].update(format="uuid"),
    "POST /orders.count takes only multiples of 5 now": lambda d: body(d)["properties"]["count"].update(multipleOf=5),
    "POST /orders.amount takes only multiples of 0.05 now": lambda d: body(d)["properties"]["amount"].update(
        multipleOf=0.05
    ),
    "POST /orders 202.total may be anything now": lambda d: view(d)["properties"].update(total={}),
    "POST /orders 202.orderId may be anything now": lambda d: view(d)["properties"].update(
        orderId={"anyOf": [{"type": "string"}, {}]}
    ),
    "POST /orders 202.paidBy.left is gone": lambda d: schema(d, "Retainer")["properties"].pop("left"),
    "the value retainer of POST /orders 202.paidBy.kind is gone": lambda d: schema(d, "Retainer")["properties"].update(
        kind={"const": "card"}
    ),
    "POST /orders 202.paidBy.kind may be absent now": lambda d: schema(d, "Retainer")["required"].remove("kind"),
    "POST /orders 202.slot.from is gone": lambda d: schema(d, "Times")["properties"].clear(),
    "POST /orders 202.slot.from may be absent now": lambda d: schema(d, "Times")["required"].clear(),
    "POST /orders 202 has no header Location any more": lambda d: place(d)["responses"]["202"]["headers"].clear(),
    "POST /orders 202: the header Location may be absent now": lambda d: location(d).pop("required"),
    "POST /orders 202: the header Location may be integer now": lambda d: location(d).update(
        schema={"type": ["string", "integer"], "enum": ["a", "b"]}
    ),
    "the value b of POST /orders 202: the header Location is gone": lambda d: location(d)["schema"]["enum"].pop(),
    "POST /orders 409 has no header Retry-After any more": lambda d: d["components"]["responses"]["Conflict"][
        "headers"
    ].clear(),
    "POST /orders needs the permission orders:decide now": lambda d: place(d).update({"x-permission": "orders:decide"}),
    "POST /orders.items[].id is gone": lambda d: body(d)["properties"]["items"].update(items={"type": "object"}),
    "POST /orders: the header parameter Idempotency-Key is gone": lambda d: place(d)["parameters"].clear(),
    "POST /orders: the header parameter Idempotency-Key is required now": lambda d: place(d)["parameters"][0].update(
        required=True
    ),
    "POST /orders: the query parameter shop is required now": lambda d: place(d)["parameters"].append(
        {"in": "query", "name": "shop", "required": True, "schema": {"type": "string"}}
    ),
    "POST /orders requires a body now": lambda d: place(d)["requestBody"].update(required=True),
    "POST /orders does not answer 202 any more": lambda d: place(d)["responses"].pop("202"),
    "POST /orders is called createOrder, which was placeOrder": lambda d: place(d).update(operationId="createOrder"),
    "GET /orders needs a credential now": lambda d: d["paths"]["/orders"]["get"].update(security=[{"bearer": []}]),
    "problem type conflict is gone": lambda d: d["components"]["examples"].clear(),
}

HARMLESS: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda d: None,
    "a new route": lambda d: d["paths"].update({"/me": {"get": {"operationId": "me", "responses": {}}}}),
    "a new optional field of a request": lambda d: body(d)["properties"].update(shop={"type": "string"}),
    "a new field of an answer": lambda d: view(d)["properties"].update(shop={"type": "string"}),
    "a new value of an answer": lambda d: view(d)["properties"]["status"]["enum"].append("FAILED"),
    "a new value of a request": lambda d: body(d)["properties"]["method"]["enum"].append("invoice"),
    "a wider limit": lambda d: body(d)["properties"]["count"].update(minimum=0, maximum=1000),
    "a finer step": lambda d: body(d)["properties"]["amount"].update(multipleOf=0.001),
    "a header in another case, and a new one": lambda d: place(d)["responses"]["202"].update(
        headers={"location": {"$ref": "#/components/headers/Location"}, "Retry-After": {}}
    ),
    "a field of one alternative more": lambda d: schema(d, "Card")["properties"].update(last4={"type": "string"}),
    "a permission that is not needed any more": lambda d: place(d).pop("x-permission"),
    "a field that need not be given any more": lambda d: body(d)["required"].clear(),
    "an answer that is never null any more": lambda d: view(d)["properties"].update(
        parent={"$ref": "#/components/schemas/View"}
    ),
    "a new optional parameter": lambda d: place(d)["parameters"].append(
        {"in": "query", "name": "shop", "schema": {"type": "string"}}
    ),
    "a problem that is not answered any more": lambda d: place(d)["responses"].pop("409"),
    "other words": lambda d: place(d).update(summary="Place", description="Place an order."),
}

MESSAGES: dict[str, Any] = {
    "asyncapi": "3.0.0",
    "channels": {"orderPaid": {"address": "order.paid"}},
    "operations": {"orderSendsOrderPaid": {}},
    "components": {
        "messages": {"OrderPaid": {"payload": {"$ref": "#/components/schemas/OrderPaid"}}},
        "schemas": {
            "OrderPaid": {
                "type": "object",
                "required": ["orderId"],
                "properties": {"orderId": {"type": "string"}, "reason": {"type": "string"}},
            }
        },
    },
}


def paid(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["OrderPaid"]


MESSAGE_BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "channel orderPaid is gone": lambda d: d["channels"].clear(),
    "operation orderSendsOrderPaid is gone": lambda d: d["operations"].clear(),
    "channel orderPaid has the address paid, which was order.paid": lambda d: d["channels"]["orderPaid"].update(
        address="paid"
    ),
    "OrderPaid.reason is gone": lambda d: paid(d)["properties"].pop("reason"),
    "OrderPaid.reason is required now": lambda d: paid(d)["required"].append("reason"),
    "OrderPaid.orderId may be absent now": lambda d: paid(d)["required"].clear(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_found_with_its_name(name: str) -> None:
    after = copy.deepcopy(DOCUMENT)
    BREAKS[name](after)
    assert breaks(DOCUMENT, after) == [name]
    assert breaks(surface(DOCUMENT), after) == [name], "the stored surface has all that is compared"


@pytest.mark.parametrize("name", HARMLESS)
def test_an_addition_breaks_nothing(name: str) -> None:
    after = copy.deepcopy(DOCUMENT)
    HARMLESS[name](after)
    assert breaks(DOCUMENT, after) == []


@pytest.mark.parametrize("name", MESSAGE_BREAKS)
def test_a_break_of_a_message_is_found_with_its_name(name: str) -> None:
    after = copy.deepcopy(MESSAGES)
    MESSAGE_BREAKS[name](after)
    assert breaks(MESSAGES, after) == [name]


def test_a_new_message_or_optional_field_breaks_nothing() -> None:
    after = copy.deepcopy(MESSAGES)
    paid(after)["properties"]["code"] = {"type": "string"}
    after["channels"]["orderShipped"] = {"address": "order.shipped"}
    assert breaks(MESSAGES, after) == []


def test_the_contract_keeps_what_was_released() -> None:
    found = all_breaks()
    assert not found, "clients break; if that is intended, see CONTRIBUTING.md\n" + "\n".join(found)
