"""What pages of lists begin after, as clients know it; commands write cursors too, and do without the web framework."""

import base64
from collections.abc import Sequence
from datetime import datetime

import orjson

MAX_LIMIT = 100
"""The most entries on a page."""

Key = Sequence[str | int]
"""The sort key of an item in a list."""


def time_key(at: datetime, last_id: str) -> Key:
    """Return the sort key that `after_time` reads back."""
    return [round(at.timestamp() * 1000), last_id]


def write_cursor(key: Key) -> str:
    """Write the sort key of a page's last item as an opaque text."""
    return base64.urlsafe_b64encode(orjson.dumps(list(key))).decode().rstrip("=")
