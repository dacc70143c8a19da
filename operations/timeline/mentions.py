"""Lists the records that name an order which the order service does not know."""

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from pymongo import AsyncMongoClient

from operations.reading.participant_records import PARTICIPANT_RECORDS
from operations.timeline.timeline import Document, TimelineRecords
from shared.money import to_json_number
from shared.services import CONSOLE, INVENTORY, PROVISIONING

MOST_OF_A_KIND = 20
"""The newest or first records of one kind that are listed."""


class Mention(NamedTuple):
    """A record that names the order: what it is, its state, what it says, and when it last changed."""

    what: str
    state: str
    detail: str = ""
    at: datetime | None = None
    letter: str | None = None
    """The id of the dead letter that it is."""


async def read_mentions(client: AsyncMongoClient[Document], prefix: str, records: TimelineRecords) -> list[Mention]:
    """Return the records that name the order. Lets the driver's errors out."""
    operations = client[CONSOLE.database_in(prefix)]
    provisioning = client[PROVISIONING.database_in(prefix)]
    about: Document = {"orderId": records.order_id}
    locks, addresses, assignments, approvals = await asyncio.gather(
        provisioning["locks"].find(about).limit(MOST_OF_A_KIND).to_list(None),
        provisioning["addresses"].find(about).limit(MOST_OF_A_KIND).to_list(None),
        client[INVENTORY.database_in(prefix)]["reservations"]
        .find({"assignment.orderId": records.order_id})
        .limit(MOST_OF_A_KIND)
        .to_list(None),
        operations["approvals"].find({"subject": records.order_id}).sort("at", -1).limit(MOST_OF_A_KIND).to_list(None),
    )
    return [
        *_own(records),
        *(Mention("slot", str(a.get("status")), _slot(a), a.get("updatedAt")) for a in assignments),
        *(Mention("lock of a package", "held", str(lock["_id"]), lock.get("acquiredAt")) for lock in locks),
        *(Mention("address", "wrong" if a.get("wrong") else "sold", str(a["_id"]), a.get("at")) for a in addresses),
        *(Mention("request", str(a["status"]), f"{a['action']}: {a['why']}", a["at"]) for a in approvals),
    ]


def _own(records: TimelineRecords) -> Iterator[Mention]:
    """Yield the records that have the order's id."""
    for row in PARTICIPANT_RECORDS:
        if (record := records.by_participant.get(row.participant.name)) is not None:
            yield Mention(row.noun, str(record.get("status")), _content(record), record.get("updatedAt"))
    if (charge := records.charge) is not None:
        yield Mention("charge at the gateway", str(charge.get("status")), _content(charge), charge.get("updatedAt"))
    if (job := records.job) is not None:
        yield Mention("job", str(job.get("state")), f"package {job.get('package')}", job.get("updatedAt"))
    for letter in records.letters[:MOST_OF_A_KIND]:
        detail = f"{letter.get('routingKey') or 'message'} in {letter.get('queue') or 'an unknown queue'}"
        yield Mention("dead letter", str(letter.get("status")), detail, letter.get("lastFailedAt"), letter["_id"])


def _content(record: Document) -> str:
    items = [f"{item.get('quantity')} of {item.get('productId')}" for item in record.get("items") or ()]
    amount = record.get("amount")
    money = [f"{to_json_number(amount):,.2f} {record.get('currency') or ''}".strip()] if isinstance(amount, int) else []
    user = [f"of user {record['userId']}"] if record.get("userId") else []
    return ", ".join([*items, *money, *user])


def _slot(assignment: Document) -> str:
    return str((assignment.get("slot") or {}).get("slotId") or "no slot")
