"""Which letters are meant: by ids, by what they are, by when they failed, by words. Pure."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from operations.dead_letters.letter import LONGEST_WORD, words
from operations.dead_letters.status import OPEN, STATUSES
from shared.database import Document

MOST_WORDS_ASKED = 8


@dataclass(frozen=True, slots=True)
class Filters:
    """What all of the letters have in common; what is not given does not matter.

    `error` is the type of the last error, `type` the routing key, `status` some of the statuses (none: what is not
    over), `since` and `until` bound the last failure (the second one is not included), `text` has words that all occur
    in the body, the error or the ids (`word*` stands for all that begin so), `group` is a fingerprint.
    """

    ids: tuple[str, ...] = ()
    service: str | None = None
    error: str | None = None
    type: str | None = None
    status: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    order_id: str | None = None
    text: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if unknown := [status for status in self.status if status not in STATUSES]:
            raise ValueError(f"unknown status {unknown[0]!r}, allowed: {', '.join(STATUSES)}")

    def as_document(self) -> Document:
        """As a record keeps them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_document(cls, document: Document) -> "Filters":
        """Read them back."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**fields)

    def in_words(self) -> str:
        """What was asked for, for the log of actions."""
        told = []
        for name, value in self.as_document().items():
            if name == "ids" and len(self.ids) > 3:
                told.append(f"{len(self.ids)} ids")
            elif value:
                told.append(f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}")
        return "; ".join(told) or "all"


def query(filters: Filters, statuses: tuple[str, ...] | None = None) -> Document:
    """The database's question for these letters; with `statuses`, for those of them alone."""
    asked: Document = {}
    wanted = filters.status if statuses is None else statuses
    if not wanted and not filters.ids:
        wanted = OPEN
    if filters.ids:
        asked["_id"] = {"$in": list(filters.ids)}
    equal = {
        "service": filters.service,
        "error.type": filters.error,
        "routingKey": filters.type,
        "orderId": filters.order_id,
        "fingerprint": filters.group,
    }
    asked |= {field: value for field, value in equal.items() if value is not None}
    # Also where it is all of them: the indexes of most filters are sorted within a status.
    if wanted:
        asked["status"] = wanted[0] if len(wanted) == 1 else {"$in": list(wanted)}
    if between := _between(filters.since, filters.until):
        asked["lastFailedAt"] = between
    if filters.text:
        asked["$and"] = _occurring(filters.text)
    return asked


def _between(since: datetime | None, until: datetime | None) -> dict[str, datetime]:
    bounds = {"$gte": since, "$lt": until}
    return {operator: bound for operator, bound in bounds.items() if bound is not None}


def _occurring(text: str) -> list[Document]:
    """A condition for each word; the longest first, as long words are rare and the first decides what is looked at."""
    conditions: dict[str, Any] = {}
    for part in text.split():
        found = words(part)
        # A word with hyphens is there as a whole; its parts say nothing more.
        for word in found[:1]:
            conditions[word] = {"$regex": f"^{_escaped(word)}"} if part.endswith("*") else word
    longest_first = sorted(conditions, key=len, reverse=True)[:MOST_WORDS_ASKED]
    # Signs alone are no word, and so are found nowhere.
    return [{"words": conditions[word]} for word in longest_first] or [{"words": "\0"}]


def _escaped(word: str) -> str:
    return "".join(character if character.isalnum() else f"\\{character}" for character in word[:LONGEST_WORD])
