"""Cursors of lists that are sorted by time, newest first: the end of a page as an opaque text."""

import base64
import binascii
from datetime import UTC, datetime

import orjson


def write_cursor(at: datetime, last_id: str) -> str:
    """Write the time and the id of a page's last entry."""
    milliseconds = round(at.timestamp() * 1000)
    return base64.urlsafe_b64encode(orjson.dumps([milliseconds, last_id])).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Read the time and the id from a cursor. Raises ValueError for anything that `write_cursor` did not write."""
    try:
        milliseconds, last_id = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if type(milliseconds) is int and type(last_id) is str:
            return datetime.fromtimestamp(milliseconds / 1000, UTC), last_id
    except (binascii.Error, ValueError, TypeError, OverflowError, OSError):
        pass
    raise ValueError("the cursor is not one of this list")
