"""The statuses of letters and groups."""

DEAD = "dead"
"""Waits for a decision."""
REPLAYING = "replaying"
"""Claimed for a replay that may not have been published yet."""
PENDING = "pending"
"""Replayed; the outcome is not known yet."""
HANDLED = "handled"
"""A consumer has handled its last replay."""
DISCARDED = "discarded"
"""Archived for good by an operator who gave a reason."""

STATUSES = (DEAD, REPLAYING, PENDING, HANDLED, DISCARDED)
OPEN = (DEAD, REPLAYING, PENDING)
"""The statuses that may still need attention."""

OUTCOMES = {"handled": HANDLED, "failed": DEAD, "unknown": PENDING}
"""What may become of a letter in one replay, by the name for operators, as the letter records it."""

NEW = "new"
ACKNOWLEDGED = "acknowledged"
RESOLVED = "resolved"
GROUP_STATUSES = (NEW, ACKNOWLEDGED, RESOLVED)

_FORMER_GROUP_STATUSES = {"looked at": ACKNOWLEDGED, "mended": RESOLVED}


def group_status(name: str) -> str:
    """Return the group status for a name, which older releases may have stored or users may still type."""
    return _FORMER_GROUP_STATUSES.get(name, name)


def stored_group_statuses(status: str) -> list[str]:
    """Return all names under which a group status may be stored."""
    return [status, *(former for former, current in _FORMER_GROUP_STATUSES.items() if current == status)]
