"""What those see of a message who may not edit it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.dead_letters.masking import MASK, MOST_MASKED, PERSONAL, SECRET, masked
from shared.contracts import OrderCreated
from tests.unit.test_contracts import sample


def masked_json(document: Any) -> Any:
    shown = masked(json.dumps(document).encode())
    assert shown is not None
    return json.loads(shown)


def test_a_token_is_hidden_and_what_identifies_the_order_is_not() -> None:
    order = json.loads(json.dumps(sample(OrderCreated)))
    shown = masked_json(order)
    assert shown["payment"] == {**order["payment"], "token": MASK}
    assert {name: value for name, value in shown.items() if name != "payment"} == {
        name: value for name, value in order.items() if name != "payment"
    }


def test_everything_about_a_person_is_hidden_but_for_its_structure() -> None:
    order = {
        "orderId": "o1",
        "customer": {"name": "Anna", "phones": ["1", {"home": "2"}], "email": None},
        "delivery": {
            "method": "delivery",
            "address": {"line1": "Main Street 1", "country": "DE"},
            "instructions": "ring",
        },
        "items": [{"productId": "p1", "name": "Lamp"}],
        "note": "for my sister",
    }
    assert masked_json(order) == {
        "orderId": "o1",
        "customer": {"name": MASK, "phones": [MASK, {"home": MASK}], "email": None},
        "delivery": {"method": "delivery", "address": {"line1": MASK, "country": MASK}, "instructions": MASK},
        "items": [{"productId": "p1", "name": "Lamp"}],
        "note": MASK,
    }


@pytest.mark.parametrize("name", ["Token", "card_number", "PASSWORD", "postal-code", "accountNumber"])
def test_other_spellings_of_a_field_are_hidden_too(name: str) -> None:
    assert masked_json({"a": [{name: 4711}]}) == {"a": [{name: MASK}]}


secrets = st.text("0123456789abcdef", min_size=12, max_size=12).map(lambda digits: f"secret-{digits}")
names = st.sampled_from(sorted(SECRET | PERSONAL))


@given(
    secret=secrets,
    name=names,
    path=st.lists(st.one_of(st.sampled_from(["order", "items"]), st.none()), max_size=6),
    below=st.lists(st.one_of(st.sampled_from(["deeper"]), st.none()), max_size=3),
)
def test_however_deep_a_sensitive_field_is_its_value_is_not_shown(
    secret: str, name: str, path: list[str | None], below: list[str | None]
) -> None:
    document: Any = secret
    for step in [*below, name, *path]:
        document = [document] if step is None else {step: document}
    assert secret not in (masked(json.dumps(document).encode()) or b"").decode()


@pytest.mark.parametrize(
    "body", [b"token=tok_1", b"\xff\x00", b"", b'{"token": "tok_1"', b"[" * 100_000, b'"' + b"x" * MOST_MASKED + b'"']
)
def test_nothing_is_shown_of_a_body_that_cannot_be_masked(body: bytes) -> None:
    assert masked(body) is None
