"""Writes events to files: as JSON lines, or as Parquet with typed columns (needs the extra `ordersaga[export]`)."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO, Literal, Protocol

import orjson

from operations.errors import CommandError
from operations.events.event import Event

Format = Literal["jsonl", "parquet"]

GROUP_ROWS = 10_000
GROUP_BYTES = 16 * 1024 * 1024
"""A row group of Parquet is written when it has so many rows or so many bytes: they are in memory until then."""


class ExportFormatError(CommandError):
    """The library that writes this format is not installed."""


class EventWriter(Protocol):
    """Writes events to a file."""

    def write(self, events: Sequence[Event]) -> None:
        """Write these events after the others."""


Opener = Callable[[BinaryIO], contextlib.AbstractContextManager[EventWriter]]
"""Opens a writer on a file; at the end of the context, the content of the file is complete."""


def opener(format_: Format) -> Opener:
    """Return what writes this format. Raises ExportFormatError if its library is not installed."""
    if format_ == "jsonl":
        return _json_lines
    if importlib.util.find_spec("pyarrow") is None:
        raise ExportFormatError("--format parquet needs an optional extra: pip install 'ordersaga[export]'")
    return _parquet


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, events: Sequence[Event]) -> None:
        """Write one line for each event."""
        self._file.writelines(line_of(event) + b"\n" for event in events)


def line_of(event: Event) -> bytes:
    """Return an event as one line of JSON, without its end."""
    return _as_json(event.as_json())


def _as_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # nested more than 254 levels deep, which only the slower writer can do
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@contextlib.contextmanager
def _json_lines(file: BinaryIO) -> Iterator[_JsonLines]:
    yield _JsonLines(file)


class _Parquet:
    def __init__(self, write_group: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        self._write_group = write_group
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, events: Sequence[Event]) -> None:
        """Add a row for each event, and write a row group once it is full."""
        for event in events:
            row = row_of(event)
            self._rows.append(row)
            self._bytes += len(row["data"])
            if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write the rows of the last group."""
        if self._rows:
            self._write_group(self._rows)
        self._rows, self._bytes = [], 0


@contextlib.contextmanager
def _parquet(file: BinaryIO) -> Iterator[_Parquet]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, amount = pa.string(), pa.decimal128(18, 2)
    schema = pa.schema(
        [
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("type", text, nullable=False),
            ("at", pa.timestamp("ms", tz="UTC")),
            ("order_id", text),
            ("user_id", text),
            ("owner_id", text),
            ("total_amount", amount),
            ("currency", text),
            ("refund_id", text),
            ("amount", amount),
            ("reason", text),
            ("message_id", text),
            pa.field("data", text, nullable=False),
        ]
    )
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        parquet = _Parquet(lambda rows: writer.write_table(pa.Table.from_pylist(list(rows), schema=schema)))
        yield parquet
        parquet.flush()


def row_of(event: Event) -> dict[str, Any]:
    """Return the columns of an event; what an event does not have, or has as something else, is None."""
    data = event.data if isinstance(event.data, Mapping) else {}
    return {
        "offset": event.offset,
        "type": event.type,
        "at": event.at,
        "order_id": event.order_id,
        "user_id": _text(data, "userId"),
        "owner_id": _text(data, "ownerId"),
        "total_amount": _amount(data, "totalAmount"),
        "currency": _text(data, "currency"),
        "refund_id": _text(data, "refundId"),
        "amount": _amount(data, "amount"),
        "reason": _text(data, "reason"),
        "message_id": event.message_id,
        "data": _as_json(event.data).decode(),
    }


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return value if isinstance(value, str) else None


_LARGEST = Decimal(10) ** 16


def _amount(data: Mapping[str, Any], name: str) -> Decimal | None:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        amount = Decimal(str(value)).quantize(Decimal("0.01"))
    except InvalidOperation:
        return None
    return amount if abs(amount) < _LARGEST else None
