"""Cursors: a written cursor is read back, and anything else is refused before it reaches a database."""

import base64
import json
from datetime import UTC, datetime, timedelta

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cursors import time_key, write_cursor
from shared.http import ProblemError
from shared.paging import after_id, after_time, page_response, read_cursor

KEYS = st.lists(st.integers(-(2**53), 2**53) | st.text(max_size=50), min_size=1, max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(key=KEYS)
def test_what_is_written_is_read_back(key: list[str | int]) -> None:
    assert read_cursor(write_cursor(key), [type(value) for value in key]) == key


@given(content=JSON, kinds=st.lists(st.sampled_from([int, str]), min_size=1, max_size=3))
def test_what_is_read_fits_into_bson(content: object, kinds: list[type]) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    try:
        key = read_cursor(cursor, kinds)
    except ProblemError:
        return
    assert [type(value) for value in key] == kinds
    bson.encode({"key": key, "negated": [-value for value in key if isinstance(value, int)]})


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63)])
def test_a_number_that_no_list_writes_is_refused(number: int) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps([number, "", ""]).encode()).decode()
    with pytest.raises(ProblemError, match="is not a nextCursor"):
        read_cursor(cursor, (int, str, str))


@given(cursor=st.text(max_size=100))
def test_any_text_gets_an_answer(cursor: str) -> None:
    with pytest.raises(ProblemError):
        read_cursor(cursor, (int, str, str, int))


@pytest.mark.parametrize(("limit", "following"), [(2, "b"), (3, None)], ids=["full", "not full"])
def test_a_full_page_has_a_cursor_after_its_last_item(limit: int, following: str | None) -> None:
    response = page_response(["a", "b"], str.upper, key=lambda item: [item], limit=limit)
    body = json.loads(bytes(response.body))
    assert body["items"] == ["A", "B"]
    assert after_id(body["nextCursor"]) == following


@given(at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)), last_id=st.text(max_size=9))
def test_a_time_is_read_back_to_the_millisecond(at: datetime, last_id: str) -> None:
    read = after_time(write_cursor(time_key(at, last_id)))
    assert read is not None
    assert abs(read[0] - at) <= timedelta(milliseconds=0.5)
    assert read[1] == last_id


def test_the_first_page_starts_at_the_beginning() -> None:
    assert (after_id(None), after_time(None)) == (None, None)


def test_a_time_that_no_clock_shows_is_refused() -> None:
    with pytest.raises(ProblemError, match="is not a nextCursor"):
        after_time(write_cursor([2**53, "x"]))
