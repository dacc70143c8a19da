"""What a shop lets us know about an order besides what the saga needs: stored and shown, never interpreted.

Two sub-documents of an order, both absent if nothing was given. `personal` has everything about the person, so it can
be hidden or erased in one place; `particulars` has the rest. Neither is read when the saga advances an order, and
neither is in a message.
"""

import re
from typing import Any

import orjson

from order_service.new_order import NewOrder
from shared.clock import to_rfc3339
from shared.database import Document
from shared.money import to_json_number

PERSONAL = "personal"
PARTICULARS = "particulars"
ERASED_AT = "personalErasedAt"
"""When `personal` was erased."""
UNREAD = {PERSONAL: False, PARTICULARS: False}
"""The projection without both."""

MAX_WORDS = 16
MAX_WORD_LENGTH = 64
_WORD = re.compile(r"[^\s,;]+")


def words_of(text: str) -> list[str]:
    """Return the words of a name or an e-mail address as they are searched: each once, in lower case."""
    return list(dict.fromkeys(word[:MAX_WORD_LENGTH] for word in _WORD.findall(text.casefold())))[:MAX_WORDS]


def documents_of(new: NewOrder) -> Document:
    """Return the sub-documents of a new order by their names; none for what was not given."""
    given = {PERSONAL: _personal(new), PARTICULARS: _particulars(new)}
    return {name: document for name, document in given.items() if document}


def _personal(new: NewOrder) -> Document:
    customer = _given(new.customer) if new.customer else {}
    delivery = new.delivery
    address = _given(delivery.address) if delivery and delivery.address else {}
    found: Document = {
        "customer": customer,
        "address": address,
        "instructions": delivery.instructions if delivery else None,
        "note": new.note,
        "words": words_of(f"{customer.get('name', '')} {customer.get('email', '')}"),
    }
    return {name: value for name, value in found.items() if value}


def _particulars(new: NewOrder) -> Document:
    found: Document = {
        # One for each item, in the same order; options as JSON, whose names and numbers BSON may not have.
        "items": [
            {"name": item.name, "options": orjson.dumps(item.options).decode() if item.options is not None else None}
            for item in new.items
        ]
        if any(item.name is not None or item.options is not None for item in new.items)
        else None,
        "discounts": [{"code": discount.code, "amount": discount.amount} for discount in new.discounts or ()],
        "shippingAmount": new.shipping_amount,
        "method": new.delivery.method if new.delivery else None,
        "callBefore": new.delivery.call_before if new.delivery else None,
        "metadata": new.metadata,
    }
    return {name: value for name, value in found.items() if value is not None and value != []}


def _given(body: Any) -> Document:
    given: Document = body.model_dump(by_alias=True, exclude_none=True)
    return given


def show_items(document: Document) -> list[dict[str, Any]]:
    """Show the items of an order, with their names and options where they have some."""
    shown = [{**item, "price": to_json_number(item["price"])} for item in document.get("items", ())]
    for item, more in zip(shown, document.get(PARTICULARS, {}).get("items", ()), strict=False):
        if more.get("name") is not None:
            item["name"] = more["name"]
        if more.get("options") is not None:
            item["options"] = orjson.loads(more["options"])
    return shown


def show_particulars(document: Document, *, personal: bool) -> dict[str, Any]:
    """Show what is known about an order, without its items; of the person only with `personal`."""
    about, person = document.get(PARTICULARS, {}), document.get(PERSONAL, {}) if personal else {}
    delivery = {
        "slot": document.get("delivery", {}).get("slot"),
        **{name: about.get(name) for name in ("method", "callBefore")},
        **{name: person.get(name) for name in ("address", "instructions")},
    }
    shown: dict[str, Any] = {
        "customer": person.get("customer"),
        "delivery": _present(delivery) or None,
        "discounts": [_show_discount(discount) for discount in about.get("discounts", ())] or None,
        "shippingAmount": to_json_number(about["shippingAmount"]) if "shippingAmount" in about else None,
        "note": person.get("note"),
        "metadata": about.get("metadata"),
        "personalDataErasedAt": to_rfc3339(document[ERASED_AT]) if ERASED_AT in document else None,
    }
    return _present(shown)


def _show_discount(discount: Document) -> dict[str, Any]:
    return _present({"code": discount.get("code"), "amount": to_json_number(discount["amount"])})


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
