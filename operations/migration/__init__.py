"""Replaces queues that were declared with other arguments than this release declares, with the messages in them.

`differences` says what differs, `moving` moves messages, `under_way` lets one run at a time, and `migrating` puts the
steps in an order in which no message is lost.
"""

from operations.migration.differences import Examination, QueueState
from operations.migration.migrating import MigrationReport, migrate, preview

__all__ = ["Examination", "MigrationReport", "QueueState", "migrate", "preview"]
