"""The body of a new order: its limits, the rule for its total, and its fingerprint."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from order_service.new_order import (
    MAX_DISCOUNTS,
    MAX_METADATA,
    MAX_OPTIONS_BYTES,
    NewOrder,
    fingerprint,
)
from order_service.particulars import documents_of, show_items, show_particulars, words_of
from shared.validation import explained
from tests.support.builders import order_body

FULL = {
    "customer": {"name": "Ann Smith", "email": "ann@example.org", "phone": "+49 (0)30 1234-5"},
    "delivery": {
        "slot": "auto",
        "method": "delivery",
        "address": {"line1": "1 High Street", "city": "Leeds", "postalCode": "LS1", "country": "GB"},
        "instructions": "Ring twice.\nMind the dog.",
        "callBefore": True,
    },
    "items": [
        {"productId": "p1", "quantity": 2, "price": 10, "name": "Pizza", "options": {"extras": ["olives", 3]}},
        {"productId": "p2", "quantity": 1, "price": 5.5},
    ],
    "discounts": [{"code": "SPRING", "amount": 3}, {"amount": 0.5}],
    "shippingAmount": 4.25,
    "totalAmount": 26.25,
    "note": "A gift",
    "metadata": {"channel": "app", "basket.id": "42"},
}


def errors_of(**changes: Any) -> dict[str, str]:
    """Return the messages about a body with these changes, by the field."""
    with pytest.raises(ValidationError) as raised:
        NewOrder.model_validate(order_body(**changes))
    return dict(explained({**error, "loc": ("body", *error["loc"])}) for error in raised.value.errors())


def test_all_that_is_given_is_shown_as_it_was_given() -> None:
    new = NewOrder.model_validate(order_body(**FULL))
    stored = {
        **documents_of(new),
        "items": [{"productId": "p1", "quantity": 2, "price": 1000}, {"productId": "p2", "quantity": 1, "price": 550}],
        "delivery": {"slot": "auto"},
    }
    shown = show_particulars(stored, personal=True)
    assert shown == {name: FULL[name] for name in shown}
    assert shown.keys() == FULL.keys() - {"items", "totalAmount"}
    assert show_items(stored) == FULL["items"]


def test_what_is_known_about_the_person_is_in_one_place_and_hidden_from_others() -> None:
    documents = documents_of(NewOrder.model_validate(order_body(**FULL)))
    person = ("Ann", "example.org", "1234", "High", "Leeds", "LS1", "dog", "gift")
    assert not [text for text in person if text in str(documents["particulars"])]
    shown = show_particulars(documents, personal=False)
    assert not [text for text in person if text in str(shown)]
    assert shown["delivery"] == {"method": "delivery", "callBefore": True}


def test_an_order_without_particulars_stores_and_shows_none() -> None:
    documents = documents_of(NewOrder.model_validate(order_body()))
    assert (documents, show_particulars(documents, personal=True)) == ({}, {})


@given(st.data())
def test_the_total_is_the_items_less_the_discounts_plus_shipping(data: st.DataObject) -> None:
    cents = st.integers(0, 10_000)
    items = data.draw(st.lists(st.tuples(st.integers(1, 9), cents), min_size=1, max_size=5))
    shipping = data.draw(st.none() | cents)
    full = sum(quantity * price for quantity, price in items) + (shipping or 0)
    discounts = data.draw(st.none() | st.lists(st.integers(0, 3000), max_size=4))
    total = full - sum(discounts or ())
    stated = total + data.draw(st.sampled_from([0, 0, 1, -1]))
    body = order_body(
        items=[{"productId": f"p{i}", "quantity": q, "price": p / 100} for i, (q, p) in enumerate(items)],
        totalAmount=stated / 100,
        **({} if shipping is None else {"shippingAmount": shipping / 100}),
        **({} if discounts is None else {"discounts": [{"amount": amount / 100} for amount in discounts]}),
    )
    if stated == total >= 0:
        assert NewOrder.model_validate(body).total_amount == total
    else:
        with pytest.raises(ValidationError):
            NewOrder.model_validate(body)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"discounts": [{"amount": 4}]}, "totalAmount", "is 10, but the items, less the discounts, plus"),
        ({"shippingAmount": 4}, "totalAmount", "add up to 14"),
        ({"totalAmount": 11}, "totalAmount", "is 11, but the items add up to 10"),
        (
            {"discounts": [{"amount": 8}, {"amount": 3}], "totalAmount": 0},
            "discounts",
            "they are 11 together, more than",
        ),
        ({"discounts": [{"amount": -1}], "totalAmount": 11}, "discounts[0].amount", "must be at least 0"),
        ({"shippingAmount": -1, "totalAmount": 9}, "shippingAmount", "must be at least 0"),
        ({"discounts": [{"amount": 0}] * (MAX_DISCOUNTS + 1)}, "discounts", f"at most {MAX_DISCOUNTS}"),
        ({"currency": "JPY", "shippingAmount": 0.5, "totalAmount": 10.5}, "currency", "shippingAmount is 0.5"),
        (
            {"currency": "JPY", "discounts": [{"amount": 0.5}], "totalAmount": 9.5},
            "currency",
            "discounts[0].amount is 0.5",
        ),
        ({"customer": {"email": "ann"}}, "customer.email", "must be an e-mail address"),
        ({"customer": {"phone": "call me"}}, "customer.phone", "1 to 40 digits, spaces"),
        ({"customer": {"name": "two\nlines"}}, "customer.name", "no control characters"),
        ({"customer": {"age": 7}}, "customer.age", "not a known field"),
        ({"delivery": {"method": "drone"}}, "delivery.method", "'delivery' or 'pickup'"),
        ({"delivery": {"address": {"street": "x"}}}, "delivery.address.street", "not a known field"),
        ({"delivery": {"instructions": "x" * 2001}}, "delivery.instructions", "must have 1 to 2000 characters"),
        ({"note": "a\0b"}, "note", "no control characters"),
        ({"metadata": {"a b": "x"}}, "metadata.a b", "1 to 64 letters, digits"),
        ({"metadata": {"a": "x" * 501}}, "metadata.a", "must have 0 to 500 characters"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": {str(i): "" for i in range(MAX_METADATA + 1)}}, "metadata", f"at most {MAX_METADATA}"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, message: str) -> None:
    found = errors_of(**changes)
    assert message in found[field], found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({str(i): 0 for i in range(201)}, "at most 200"),
        ({"a": "x" * MAX_OPTIONS_BYTES}, f"allowed are {MAX_OPTIONS_BYTES}"),
        ({"a": 2**70}, "64 bits"),
        ([], "must be an object"),
    ],
)
def test_options_are_a_small_object(options: Any, message: str) -> None:
    item = {"productId": "p1", "quantity": 1, "price": 10, "options": options}
    assert message in errors_of(items=[item])["items[0].options"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "63ba8ba7f5cf2ad7a826ceeedabdcf6843802e9fdb0b385a26576baf11e88526"),
        (
            {
                "items": [
                    {"productId": "p1", "quantity": 2, "price": 19.99},
                    {"productId": "p2", "quantity": 1, "price": 1},
                ],
                "totalAmount": 40.98,
                "currency": "EUR",
                "payment": {"method": "retainer", "retainerId": "r1"},
                "delivery": {"slot": "auto"},
            },
            "afeae29b3bbadb8dff0e638653b77cc04bca3c4bee889d4c8ac9bfc25b2767e0",
        ),
    ],
)
def test_a_request_of_the_first_release_is_recognized_when_it_is_repeated(
    changes: dict[str, Any], expected: str
) -> None:
    assert fingerprint(NewOrder.model_validate(order_body(**changes))) == expected


def test_every_added_field_is_part_of_the_fingerprint() -> None:
    full = NewOrder.model_validate(order_body(**FULL))
    for path in ("customer", "note", "metadata", "discounts", "shipping_amount", "delivery"):
        assert fingerprint(full) != fingerprint(full.model_copy(update={path: None})), path
    for name in ("name", "options"):
        items = [full.items[0].model_copy(update={name: None}), full.items[1]]
        assert fingerprint(full) != fingerprint(full.model_copy(update={"items": items})), name


def test_a_person_is_found_by_each_word_in_any_case() -> None:
    assert words_of("Ann  de la Smith, ANN@Example.org") == ["ann", "de", "la", "smith", "ann@example.org"]
    assert len(words_of(" ".join(map(str, range(99))))) == 16
