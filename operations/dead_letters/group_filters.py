"""Selects groups by where and why their letters failed, and when. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from operations.dead_letters.masking import mask_text
from operations.dead_letters.status import group_status, stored_group_statuses
from shared.database import Document


@dataclass(frozen=True, slots=True)
class GroupFilters:
    """A selection of groups: those that match every filter that is set.

    `cause` is a part of the error's type or message, `product` the id of a product that a letter of the group names,
    `since` and `until` bound the time of a failure (`until` is exclusive); `open_only` asks for open letters.
    """

    status: str | None = None
    service: str | None = None
    queue: str | None = None
    cause: str | None = None
    product: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    open_only: bool = False

    @property
    def in_period(self) -> bool:
        """Return whether a time is asked for."""
        return self.since is not None or self.until is not None

    @property
    def by_record(self) -> bool:
        """Return whether the groups' own records decide about something."""
        return any((self.status, self.service, self.queue, self.cause))

    def query(self) -> Document:
        """Return the MongoDB query for the records of groups; `names` decides about the cause."""
        query: dict[str, Any] = {"service": self.service, "queue": self.queue}
        if self.status:
            query["status"] = {"$in": stored_group_statuses(group_status(self.status))}
        return {name: value for name, value in query.items() if value}

    def names(self, group: Document) -> bool:
        """Return whether the cause of a group's record has the text that is asked for; what is hidden does not count.

        A hidden value that could be searched for could be guessed, one character after another.
        """
        if not self.cause:
            return True
        shown = f"{group.get('errorType', '')} {mask_text(group.get('pattern', ''))}"
        return self.cause.casefold() in shown.casefold()
