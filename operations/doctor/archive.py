"""The files of archived orders: how many orders are in them, where they are, and whether others can read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymongo.errors

from operations.actions import last_action
from operations.doctor.connection import connect
from operations.doctor.finding import Finding, note, ok, wrong
from operations.reading.archived import ARCHIVE_ACTION
from operations.reading.archived_totals import ArchivedTotals
from shared.outage_words import with_detail
from shared.services import CONSOLE

SUBJECT = "archive"


async def check_archive(url: str, prefix: str) -> Finding | None:
    """Check the directory that orders were last archived to; None if none have been, or MongoDB does not answer."""
    async with connect(url) as client:
        try:
            orders = await ArchivedTotals(client, prefix).orders()
            last = await last_action(client[CONSOLE.database_in(prefix)], ARCHIVE_ACTION)
        except pymongo.errors.ConnectionFailure:
            return None
        except pymongo.errors.PyMongoError as error:
            return wrong(SUBJECT, f"cannot be read: {with_detail(error)}", "run `ordersaga database prepare`")
    return _judge(orders, last) if orders else None


def _judge(orders: Mapping[str, int], last: Mapping[str, Any] | None) -> Finding:
    by_status = ", ".join(f"{number:,} {status}" for status, number in orders.items() if number)
    detail = f"{sum(orders.values()):,} orders are in files ({by_status})"
    if last is None:
        return note(SUBJECT, f"{detail}, written by an unknown run")
    file = Path(str(last["subject"]))
    detail += f", the last in {file}"
    try:
        mode = file.parent.stat().st_mode
    except OSError:
        return note(SUBJECT, f"{detail}, which is not on this machine")
    if mode & 0o077:
        return wrong(SUBJECT, f"{detail}: other users can open the directory", f"chmod 700 {file.parent}")
    return ok(SUBJECT, f"{detail}; `ordersaga archive --verify {file.parent}` checks them")
