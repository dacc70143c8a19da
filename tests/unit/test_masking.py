"""What is hidden of dead letters: at any depth, in bodies of any kind, and where an error quotes a body."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.dead_letters.masking import (
    IDENTIFIERS,
    MASK,
    is_sensitive,
    mask_body,
    mask_letter,
    mask_text,
    mask_value,
)

SECRET = "Zq7-very-secret"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(
    ["token", "client_secret", "e-mail", "Password", "addressLine1", "customer", "cardNumber", "note"]
)


@given(names, json_values, st.lists(st.sampled_from(["a", "b", 0]), max_size=5))
def test_a_hidden_field_is_hidden_at_any_depth(name: str, around: Any, path: list[Any]) -> None:
    value: Any = {name: {"inner": [SECRET, around]}, "other": around}
    for step in path:
        value = [value, around] if step == 0 else {step: value}
    assert is_sensitive(name)
    assert SECRET not in mask_body(json.dumps(value).encode()).decode()
    assert SECRET not in json.dumps(mask_value(value))


@given(st.binary(max_size=200))
def test_every_body_can_be_masked(body: bytes) -> None:
    assert isinstance(mask_body(body + SECRET.encode()), bytes)


@pytest.mark.parametrize("body", [b"token=" + SECRET.encode(), b"\xff\x00" + SECRET.encode(), f'"{SECRET}"'.encode()])
def test_of_a_body_that_is_no_json_object_only_length_and_hash_are_shown(body: bytes) -> None:
    assert mask_body(body).decode().startswith(f"{len(body)} bytes, SHA-256 ")


def test_what_people_need_stays() -> None:
    order = {"orderId": "o1", "userId": "u1", "payment": {"method": "card", "token": "tok_visa", "retainerId": "r1"}}
    masked = json.loads(mask_body(json.dumps(order).encode()))
    assert masked == {**order, "payment": {"method": "card", "token": MASK, "retainerId": "r1"}}


EAN = "4006381333931"


def test_an_identifier_of_digits_is_no_card_number() -> None:
    order = {
        **dict.fromkeys(("orderId", "userId", "ownerId", "refundId", "holdId"), EAN),
        "items": [{"productId": EAN, "quantity": 1}],
        "order": {"orderId": "1" * 19, "items": [{"product_id": EAN}]},
    }
    assert mask_value(order) == order
    assert mask_body(json.dumps(order).encode()) == json.dumps(order).encode()


def test_a_card_number_is_hidden_in_every_other_field() -> None:
    card = "4242424242424242"
    found = mask_value(
        {
            "reason": f"declined {card}",
            "metadata": {"gift": card, card: 1},
            "options": [card],
            "customer": {"productId": card},
            "productId": [card],
            "orderId": "4242 4242 4242 4242",
            "userId": f"ann {card}",
            "ownerId": "tok_visa",
        }
    )
    assert found == {
        "reason": f"declined {MASK}",
        "metadata": {"gift": MASK, MASK: 1},
        "options": [MASK],
        "customer": MASK,
        "productId": [MASK],
        "orderId": MASK,
        "userId": f"ann {MASK}",
        "ownerId": MASK,
    }


def test_every_identifier_of_the_messages_is_known() -> None:
    samples = (Path(__file__).parents[1] / "samples" / "messages.json").read_text()
    names = set(re.findall(r'"(\w+Id)":', samples))
    assert {"orderId", "productId"} <= names
    assert {name.lower() for name in names} <= IDENTIFIERS


@pytest.mark.parametrize("text", ["tok_visa_4242", "4242 4242 4242 4242", "ann@example.com", "osk_12345678_abcdefgh"])
def test_what_looks_sensitive_is_hidden_in_text(text: str) -> None:
    assert mask_text(f"charge {text} failed") == f"charge {MASK} failed"


@pytest.mark.parametrize("text", ["order 2026-01-31T09:30:00.250Z", "01961f5e-8f4b-7d0a-9a51-0d6f3f3a2b1c", "12 of 15"])
def test_other_text_stays(text: str) -> None:
    assert mask_text(text) == text


def test_a_value_of_the_body_is_hidden_wherever_the_letter_quotes_it() -> None:
    body = json.dumps({"payment": {"token": SECRET}}).encode()
    letter = {
        "_id": "l1",
        "body": body,
        "current": body,
        "edits": [{"by": "ann", "body": body}],
        "error": {"type": "ValueError", "message": f"no {SECRET}", "traceback": f"... {SECRET}"},
        "replays": [{"error": {"type": "E", "message": SECRET}, "why": "again"}],
        "headers": {"x-error": SECRET, "authorization": "Bearer abc", "x-attempt": 3},
    }
    masked = mask_letter(letter)
    assert SECRET not in str(masked)
    assert "Bearer" not in str(masked)
    assert masked["headers"]["x-attempt"] == 3
    assert letter["body"] == body


def test_of_a_body_that_was_not_loaded_nothing_is_shown() -> None:
    masked = mask_letter({"_id": "l1", "body": None, "bodyText": f'{{"token": "{SECRET}', "size": 9_000_000})
    assert SECRET not in str(masked)
    assert "9000000 bytes" in masked["bodyText"]
