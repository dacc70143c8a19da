"""Incidents that have records of their own elsewhere: their ids come from those. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from operations.incidents.incident import Incident

Document = Mapping[str, Any]

COLLECTED = timedelta(minutes=1)
"""New groups of dead letters within this time are one incident."""

MOST_NAMED = 3


def new_groups(groups: Sequence[Document], now: datetime) -> list[Incident]:
    """Return the incidents of groups that are new: one for each minute that is over, however many groups it had."""
    by_minute: dict[datetime, list[Document]] = defaultdict(list)
    for group in groups:
        # Not `statusAt`: an operator who sets a group back to new makes no new group.
        minute = (group.get("reopenedAt") or group["since"]).replace(second=0, microsecond=0)
        if minute + 2 * COLLECTED <= now:
            by_minute[minute].append(group)
    return [_of_minute(minute, found) for minute, found in sorted(by_minute.items())]


def _of_minute(minute: datetime, groups: Sequence[Document]) -> Incident:
    services = {group.get("service") for group in groups}
    names = [f"{group.get('errorType') or 'unknown'} in {group.get('service') or 'unknown'}" for group in groups]
    named = ", ".join(dict.fromkeys(names[:MOST_NAMED])) + (", …" if len(names) > MOST_NAMED else "")
    what = "A new group" if len(groups) == 1 else f"{len(groups)} new groups"
    only = groups[0]["_id"] if len(groups) == 1 else None
    return Incident(
        f"dead-letters@{minute.isoformat()}",
        minute + COLLECTED,
        "dead-letters",
        f"{what} of dead letters: {named}",
        "dead-letters",
        services.pop() if len(services) == 1 else None,
        f"/dead-letters/groups/{only}" if only else "/dead-letters",
    )


def ended_bulk(bulk: Document, outcomes: Mapping[str, int]) -> Incident:
    """Return the incident of an action on many orders that has ended, or was stopped."""
    results = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())) or "none acted on"
    text = f"The action {bulk['action']} on {bulk['total']:,} orders has {_HOW[bulk['status']]}: {results}"
    subject = bulk_subject(bulk["_id"])
    return Incident(subject, bulk["endedAt"], "bulk-ended", text, subject, link=f"/bulk-actions/results/{bulk['_id']}")


def bulk_subject(bulk_id: str) -> str:
    """Return the subject of an action on many orders, which is also the id of its incident."""
    return f"bulk/{bulk_id}"


_HOW = {"ended": "ended", "stopped": "been stopped"}
