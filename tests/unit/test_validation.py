"""What is wrong with a field: in our own words, for every error that the validator knows, with the field that it is."""

from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core._pydantic_core import list_all_errors

from shared.contracts.base import Name
from shared.http import Body
from shared.validation import Moment, explained, field_name, message_of, wrong_field
from tests.support.api_compatibility import current

FOREIGN = ("Input should", "Value error", "String should", "Extra inputs", "Field required", "validation")


class Part(Body):
    count: Annotated[int, Field(ge=1)]


class Whole(Body):
    name: Name = "n"
    parts: Annotated[list[Part], Field(min_length=1)]
    given: bool = True
    reason: str | None = None

    @model_validator(mode="after")
    def _reason_is_for_nothing_given(self) -> "Whole":
        if self.given and self.reason is not None:
            raise wrong_field("reason", "is allowed only with given false")
        return self


@pytest.mark.parametrize("error", list_all_errors(), ids=lambda error: error["type"])
def test_no_error_is_told_in_the_validators_words(error: dict[str, Any]) -> None:
    message = message_of({"type": error["type"], "loc": (), "ctx": error["example_context"] or {}})
    assert message
    assert not any(words in message for words in FOREIGN)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "parts", "is required"),
        ({"parts": []}, "parts", "must have at least 1 entry"),
        ({"parts": [{"count": 1}, {"count": 0}]}, "parts[1].count", "must be at least 1"),
        ({"parts": [{"count": 1.5}]}, "parts[0].count", "must be a whole number"),
        ({"parts": {}}, "parts", "must be an array"),
        ({"parts": [7]}, "parts[0]", "must be an object"),
        ({"parts": [{"count": 1}], "colour": "red"}, "colour", "is not a known field"),
        ({"parts": [{"count": 1}], "name": ""}, "name", "must have 1 to 128 characters, and no control characters"),
        ({"parts": [{"count": 1}], "given": "yes"}, "given", "must be true or false"),
        ({"parts": [{"count": 1}], "reason": "r"}, "reason", "is allowed only with given false"),
        ([], "body", "must be an object"),
    ],
    ids=str,
)
def test_the_field_that_is_wrong_is_named(body: object, field: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate(body)
    assert [explained(dict(error)) for error in raised.value.errors()] == [(field, message)]


def test_every_pattern_of_a_request_is_told_in_words() -> None:
    found: set[str] = set()

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            found.update([part["pattern"]] if isinstance(part.get("pattern"), str) else [])
            found.update(part.get("patternProperties", ()))
            for each in part.values():
                collect(each)
        elif isinstance(part, list):
            for each in part:
                collect(each)

    collect([document for name, document in current().items() if name not in ("asyncapi", "simulator")])
    assert len(found) > 5
    for pattern in found:
        message = message_of({"type": "string_pattern_mismatch", "loc": (), "ctx": {"pattern": pattern}})
        assert "pattern" not in message, pattern


@pytest.mark.parametrize("text", ["2026", "1700000000", " -1.5 ", 2026, 1.5])
def test_a_number_is_no_time(text: object) -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Moment).validate_python(text)
    assert message_of(dict(raised.value.errors()[0])) == "must be a time as in RFC 3339, such as 2026-11-29T12:00:00Z"


def test_a_time_is_read_in_utc() -> None:
    moment = TypeAdapter(Moment).validate_python("2026-11-29T12:00:00+02:00")
    assert (moment, moment.tzinfo) == (datetime(2026, 11, 29, 10, tzinfo=UTC), UTC)


@pytest.mark.parametrize(
    ("location", "name"),
    [
        (("body", "items", 0, "quantity"), "items[0].quantity"),
        (("body",), "body"),
        (("path", "order_id"), "orderId"),
        (("query", "userId"), "userId"),
        (("header", "idempotency-key"), "Idempotency-Key"),
        (("body", "metadata", "a b", "[key]"), "metadata.a b"),
        (("body", "x" * 1000), "x" * 100),
        ((0, "a"), "[0].a"),
    ],
)
def test_a_place_is_written_as_a_path(location: tuple[str | int, ...], name: str) -> None:
    assert field_name(location) == name
