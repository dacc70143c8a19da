"""One event of the stream, the selection of some, and the files that have them."""

import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from operations.commands.events.options import build_selection
from operations.events import files
from operations.events.event import Event, Selection, read_event, summary
from operations.events.files import ExportFormatError, line_of, opener, row_of
from operations.events.stream import start_of
from operations.stack.files import replaced_private
from shared.settings import read_retention

AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def event(offset: int = 0, type_: str = "order.created", order_id: str = "o1", **fields: object) -> Event:
    return read_event(offset, type_, AT, "m1", orjson.dumps({"orderId": order_id, **fields}))


def test_an_event_hides_tokens_and_keeps_what_finds_the_order() -> None:
    found = event(7, payment={"token": "tok_ok", "method": "card"}, userId="u1")
    assert found.as_json() == {
        "offset": 7,
        "type": "order.created",
        "at": "2026-01-31T09:30:00Z",
        "orderId": "o1",
        "messageId": "m1",
        "data": {"orderId": "o1", "payment": {"token": "•••", "method": "card"}, "userId": "u1"},
    }


def nested(levels: int) -> bytes:
    return b'{"orderId": "o1", "metadata": ' + b'{"a":' * levels + b"1" + b"}" * (levels + 1)


@pytest.mark.parametrize("levels", [10, 300])
def test_a_nested_body_is_exported_as_it_is(levels: int) -> None:
    found = read_event(7, "order.created", AT, "m1", nested(levels))
    assert json.loads(line_of(found))["data"] == json.loads(nested(levels))
    assert json.loads(row_of(found)["data"]) == json.loads(nested(levels))
    assert not found.is_unreadable


@pytest.mark.parametrize("levels", [600, 1010])
def test_a_body_nested_too_deeply_is_exported_as_length_and_hash_with_its_order(levels: int) -> None:
    found = read_event(7, "order.created", AT, "m1", nested(levels))
    assert found.is_unreadable
    assert found.order_id == "o1"
    assert Selection(order_id="o1").selects(found)
    assert "SHA-256" in json.loads(line_of(found))["data"]
    assert "SHA-256" in row_of(found)["data"]


def test_an_order_id_of_digits_stays_and_a_card_number_does_not() -> None:
    found = event(order_id="4006381333931", items=[{"productId": "4006381333931"}], reason="no 4242424242424242")
    assert found.order_id == "4006381333931"
    assert found.data["orderId"] == "4006381333931"
    assert found.data["items"] == [{"productId": "4006381333931"}]
    assert "4242" not in str(found.data)


@pytest.mark.parametrize("since", ["0001-01-01", "1960-01-01", "1970-01-01"])
def test_a_time_before_all_streams_begins_with_the_first_event(since: str) -> None:
    assert start_of(build_selection(since, None, None, 0)) == 0


def test_a_time_begins_a_little_earlier_and_an_offset_exactly_there() -> None:
    assert start_of(Selection(since=AT)) == AT - timedelta(seconds=60)
    assert start_of(Selection(since=AT, offset=3)) == 3
    assert start_of(Selection()) == 0


@pytest.mark.parametrize("body", [b"", b"no JSON", b'"tok_secret"', b"1", b"null", b"[" * 100_000])
def test_a_body_that_is_no_object_does_not_stop_a_reader_and_is_not_shown(body: bytes) -> None:
    found = read_event(1, "order.created", None, None, body)
    assert (found.order_id, found.at) == (None, None)
    assert "SHA-256" in found.data
    assert row_of(found)["user_id"] is None
    assert summary(found) == found.data


@pytest.mark.parametrize(
    ("selection", "selected"),
    [
        (Selection(), True),
        (Selection(types=("order.*",)), True),
        (Selection(types=("package.*", "order.created")), True),
        (Selection(types=("order",)), False),
        (Selection(order_id="o1"), True),
        (Selection(order_id="o"), False),
        (Selection(since=AT.replace(microsecond=999)), True),
        (Selection(since=AT.replace(second=1)), False),
        (Selection(offset=7), True),
        (Selection(offset=8), False),
        (Selection(types=("order.*",), order_id="o2"), False),
    ],
)
def test_a_selection_needs_all_that_it_names(selection: Selection, selected: bool) -> None:
    assert selection.selects(event(7)) is selected


def test_options_make_a_selection() -> None:
    assert build_selection("2026-01-31T09:30:00Z", ["order.*"], "o1", 3) == Selection(("order.*",), "o1", AT, 3)


def test_a_line_for_people_has_what_matters() -> None:
    shown = summary(event(userId="u1", totalAmount=19.99, reason="Sold out", items=[]))
    assert shown == "userId u1, totalAmount 19.99, reason Sold out"


def test_columns_are_typed_and_what_does_not_fit_is_left_out() -> None:
    row = row_of(event(userId=7, totalAmount=0.1 + 0.2, amount="1", currency="EUR"))
    assert (row["user_id"], row["total_amount"], row["amount"], row["currency"]) == (None, Decimal("0.30"), None, "EUR")
    not_amounts: list[object] = [True, 1e300, 10**16, [], None]
    for wrong in not_amounts:
        assert row_of(event(totalAmount=wrong))["total_amount"] is None


def test_parquet_is_written_in_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_ROWS", 3)
    file = io.BytesIO()
    with opener("parquet")(file) as writer:
        for first in (0, 4):
            writer.write([event(offset) for offset in range(first, first + 4)])
    found = pq.ParquetFile(file)
    assert [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)] == [3, 3, 2]
    rows = found.read().to_pylist()
    assert [row["offset"] for row in rows] == list(range(8))
    assert (rows[0]["at"], rows[0]["order_id"]) == (AT, "o1")


def test_large_bodies_end_a_row_group_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_BYTES", 1000)
    file = io.BytesIO()
    with opener("parquet")(file) as writer:
        writer.write([event(offset, note="x" * 10, reason="y" * 600) for offset in range(4)])
    assert pq.ParquetFile(file).num_row_groups == 2


def test_parquet_without_events_can_be_read() -> None:
    file = io.BytesIO()
    with opener("parquet")(file):
        pass
    assert pq.read_table(file).num_rows == 0


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    opener("jsonl")
    with pytest.raises(ExportFormatError, match=r"pip install 'ordersaga\[export\]'"):
        opener("parquet")


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "events"
    out.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        _interrupt_writing(out)
    assert [found.name for found in tmp_path.iterdir()] == ["events"]
    assert out.read_text() == "before"
    with replaced_private(out) as file:
        file.write(b"whole")
        assert out.read_text() == "before"
    assert out.read_text() == "whole"


def _interrupt_writing(out: Path) -> None:
    with replaced_private(out) as file:
        file.write(b"half")
        raise KeyboardInterrupt


@pytest.mark.parametrize(("text", "expected"), [("7D", "7D"), (" 12h ", "12h"), ("off", ""), ("", ""), ("1Y", "1Y")])
def test_the_retention_is_written_as_rabbitmq_does(text: str, expected: str) -> None:
    assert read_retention(text) == expected


@pytest.mark.parametrize("text", ["7", "7d", "0D", "-1D", "1W", "D", "7D 1h", "07D", "1000000D"])
def test_another_retention_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 7D or 12h, or off"):
        read_retention(text)
