"""Examples for the schemas of an OpenAPI document: those that a schema has, else values made from names and types."""

import re
from collections.abc import Mapping
from typing import Any

_PREFIX = "#/components/schemas/"
_BY_NAME: Mapping[str, Any] = {
    "orderId": "5f0c2b1e9d",
    "userId": "u1",
    "ownerId": "shop",
    "productId": "p1",
    "quantity": 1,
    "slot": "slot:1795258800",
    "slotId": "slot:1795258800",
    "holdId": "9b1c40d2",
    "refundId": "c1a3f7e0",
    "retainerId": "r1",
    "transactionId": "ch_1",
    "clientId": "c1",
    "customerId": "c1",
    "invoiceId": "i1",
    "paymentId": "pay_1",
    "currency": "USD",
    "email": "ann@example.org",
    "phone": "+49 30 1234567",
    "country": "DE",
    "city": "Berlin",
    "line1": "1 Main Street",
    "name": "Ann",
    "package": "103.181.91",
    "packageId": "7",
    "ip": "103.181.91.50",
    "ips": "103.181.91.50",
    "reason": "Damaged",
    "failureReason": None,
    "failureCode": None,
    "nextCursor": None,
    "_id": "5f0c2b1e9d",
    "entryId": "e1",
    "cancelEntryId": None,
    "cancelledAt": None,
    "fromAccountId": "b1",
    "toAccountId": "b2",
    "accountNumber": "DE02120300000000202051",
    "bankName": "Main Bank",
    "retainerType": "prepaid",
    "paymentMethod": "card",
    "ledgerAccount": "retainer:5f0c2b1e9d",
    "account": "retainer:5f0c2b1e9d",
    "operation": "order.paid",
    "description": "Advice in November",
    "reverses": None,
    "username": "root",
    "password": "…",
    "os": "Debian 12",
    "asked": "103.181.91.50",
    "wrongIps": "103.181.92.7",
    "disabledReason": None,
    "offSaleReason": None,
    "durationMinutes": 15,
    "cutoffMinutes": 8,
    "leadMinutes": 30,
    "horizonSlots": 100,
    "ram": 2048,
    "status": "active",
    "outcome": "ok",
    "detail": "3 free, asking for 103.181.91.50",
    "code": "card_declined",
    "id": "5f0c2b1e9d",
    "url": "https://shop.example/webhooks",
    "webhookId": "wh_5f0c2b1e9d",
    "secret": "whsec_…",
    "type": "order.confirmed",
    "error": None,
    "failingSince": None,
    "disabledAt": None,
    "letterId": "l1",
    "messageId": "m1",
    "openTime": "08:00",
    "closeTime": "22:00",
}
"""Values of fields with these names, where their schemas allow them."""

_TIME = "2026-11-28T12:00:00Z"
_TEXTS = ("text", "USD", "08:00", "slot:1795258800", "ann@example.org", "auto", "1")


class Examples:
    """Makes examples of schemas; `schemas` are those that the document names."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas

    def of(self, schema: Mapping[str, Any], *, all_fields: bool, name: str = "") -> Any:
        """Return an example of a schema: with `all_fields` as an answer has them, else with the required ones."""
        if "$ref" in schema:
            return self.of(self._schemas[schema["$ref"].removeprefix(_PREFIX)], all_fields=all_fields, name=name)
        if schema.get("examples"):
            return schema["examples"][0]
        for key in ("example", "const"):
            if key in schema:
                return schema[key]
        if name in _BY_NAME and self._allows(schema, _BY_NAME[name]):
            return _BY_NAME[name]
        for several in ("anyOf", "allOf"):
            if several in schema:
                return self.of(schema[several][0], all_fields=all_fields, name=name)
        if "enum" in schema:
            return schema["enum"][0]
        return self._of_type(schema, all_fields, name)

    def _of_type(self, schema: Mapping[str, Any], all_fields: bool, name: str) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(schema, all_fields)
            case "array":
                return [self.of(schema.get("items", {}), all_fields=all_fields, name=name)]
            case "integer":
                return int(schema.get("minimum", 1))
            case "number":
                return 19.99
            case "boolean":
                return schema.get("default", True)
            case "string":
                return _text(schema, name)
        return {} if schema.get("type") is None and not schema else None

    def _object(self, schema: Mapping[str, Any], all_fields: bool) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.of(field, all_fields=all_fields, name=name)
            for name, field in schema.get("properties", {}).items()
            if all_fields or name in required
        }

    def _allows(self, schema: Mapping[str, Any], value: Any) -> bool:
        if "$ref" in schema:
            return self._allows(self._schemas[schema["$ref"].removeprefix(_PREFIX)], value)
        if "anyOf" in schema:
            return any(self._allows(each, value) for each in schema["anyOf"])
        if "enum" in schema:
            return value in schema["enum"]
        if value is None:
            return schema.get("type") == "null"
        if isinstance(value, str):
            return schema.get("type") == "string" and _matches(schema, value)
        return schema.get("type") == "integer" and value >= schema.get("minimum", value)


def _text(schema: Mapping[str, Any], name: str) -> str:
    if schema.get("format") == "date-time" or name == "at" or name.endswith("At"):
        return _TIME
    return next((text for text in _TEXTS if _matches(schema, text)), "")


def _matches(schema: Mapping[str, Any], text: str) -> bool:
    return schema.get("format") != "date-time" and re.search(schema.get("pattern", ""), text) is not None
