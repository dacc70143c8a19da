"""The states of a letter and of a group, by their names."""

DEAD = "dead"
"""Waits for somebody's decision."""
REPLAYING = "replaying"
"""Claimed for a replay that is not known to be published yet."""
PENDING = "pending"
"""Replayed; what became of it is not known yet."""
HANDLED = "handled"
"""A consumer has handled its last replay."""
DISCARDED = "discarded"
"""Put aside for good by somebody who said why."""

STATUSES = (DEAD, REPLAYING, PENDING, HANDLED, DISCARDED)
OPEN = (DEAD, REPLAYING, PENDING)
"""What is not over."""

NEW = "new"
LOOKED_AT = "looked at"
MENDED = "mended"
GROUP_STATUSES = (NEW, LOOKED_AT, MENDED)
