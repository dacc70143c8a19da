"""Select letters by id, by their fields, by when they failed, or by the words in them. Pure."""

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from operations.dead_letters.letter import LONGEST_WORD, words
from operations.dead_letters.status import DEAD, DISCARDED, OPEN, OUTCOMES, PENDING, STATUSES
from shared.database import Document
from shared.topology import INBOXES

MOST_WORDS_ASKED = 8


@dataclass(frozen=True, slots=True)
class Filters:
    """A selection of letters: those that match every filter that is set.

    `queue` is the inbox in which they failed, `error` is the type of the last error, `type` the routing key, `status`
    one or more statuses (by default the open ones), `since` and `until` bound the last failure (`until` is exclusive),
    `text` is a full-text search in body, error and ids (all words must match, a trailing * matches a prefix), `group`
    is a fingerprint, `replay` is the id of a replay that has claimed them, and `outcome` what became of them in it, one
    of OUTCOMES.
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
    replay: str | None = None
    outcome: str | None = None
    queue: str | None = None

    def __post_init__(self) -> None:
        if self.outcome is not None and self.outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {self.outcome!r}, allowed: {', '.join(OUTCOMES)}")
        if self.outcome is not None and self.replay is None:
            raise ValueError("an outcome is that of a replay: name the replay too")
        if unknown := [status for status in self.status if status not in STATUSES]:
            raise ValueError(f"unknown status {unknown[0]!r}, allowed: {', '.join(STATUSES)}")

    def as_document(self) -> Document:
        """Return the filters as a record stores them."""
        fields = asdict(self)
        # Release 0.1.0 reads these records too, and does not know the filters that were added since.
        added = {name: value for name in ("replay", "outcome", "queue") if (value := fields.pop(name)) is not None}
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return stored | added

    @classmethod
    def from_document(cls, document: Document) -> "Filters":
        """Read stored filters."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**fields)

    def in_words(self) -> str:
        """Describe the selection, for the log of actions."""
        parts = []
        for name, value in self.as_document().items():
            if name == "ids" and len(self.ids) > 3:
                parts.append(f"{len(self.ids)} ids ({_digest(self.ids)})")
            elif value:
                parts.append(f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}")
        return "; ".join(parts) or "all"

    @property
    def subject(self) -> str:
        """The subject of an act on the whole selection, for the log of actions: its group, or what selects it."""
        return self.group or self.in_words()[:200]


def until_now(filters: Filters, now: datetime) -> Filters:
    """Return the selection without what fails from now on. Letters that are named by their ids stay selected."""
    if filters.ids:
        return filters
    return replace(filters, until=now if filters.until is None else min(filters.until, now))


def query(filters: Filters, statuses: tuple[str, ...] | None = None) -> Document:
    """Return the MongoDB query for a selection; `statuses` replaces the statuses of the filters."""
    asked: Document = {}
    wanted = filters.status if statuses is None else statuses
    if not wanted and not filters.ids:
        wanted = STATUSES if filters.replay else OPEN
    if filters.ids:
        asked["_id"] = {"$in": list(filters.ids)}
    equal = {
        "service": filters.service,
        "error.type": filters.error,
        "routingKey": filters.type,
        "orderId": filters.order_id,
        "fingerprint": filters.group,
        "queue": filters.queue,
    }
    asked |= {field: value for field, value in equal.items() if value is not None}
    # Set even when it names every status: most indexes are sorted within a status.
    if wanted:
        asked["status"] = wanted[0] if len(wanted) == 1 else {"$in": list(wanted)}
    if between := _between(filters.since, filters.until):
        asked["lastFailedAt"] = between
    if filters.replay:
        outcome = {} if filters.outcome is None else {"outcome": OUTCOMES[filters.outcome]}
        asked["replays"] = {"$elemMatch": {"replay": filters.replay} | outcome}
    if filters.text:
        asked["$and"] = _containing(filters.text)
    return asked


def decidable(filters: Filters) -> tuple[str, ...]:
    """Return the statuses in which the selected letters can be replayed or discarded.

    Those are the dead ones. A letter named by its id may also be pending: its operator has seen it, and it would be
    stuck if the outcome of its last replay were never reported.
    """
    return (DEAD, PENDING) if filters.ids else (DEAD,)


def discardable(filters: Filters) -> Document:
    """Return the query for the selected letters that can be discarded."""
    return query(filters, decidable(filters))


def restorable(filters: Filters) -> Document:
    """Return the query for the selected letters that are discarded."""
    return query(filters, (DISCARDED,))


def replayable(filters: Filters) -> Document:
    """Return the query for the selected letters that can be replayed: only an inbox can be replayed to.

    Foreign letters are left out unless they are named by their ids: an operator has to look at each of them.
    """
    inboxes = [inbox for inbox in INBOXES if filters.queue in (None, inbox)]
    asked = query(filters, decidable(filters)) | {"queue": {"$in": inboxes}}
    return asked if filters.ids else asked | {"foreign": {"$ne": True}}


def claimable(replay: Document) -> Document:
    """Return the condition under which a replay may claim a letter: dead, or pending since before the replay began.

    A letter that another replay has sent since is left alone: the operator who started this replay has not seen that.
    """
    return {"$or": [{"status": DEAD}, {"status": PENDING, "lastReplay": {"$in": replay.get("pending", [])}}]}


def _digest(ids: tuple[str, ...]) -> str:
    """Return a few characters that tell these ids from any others."""
    return sha256("\n".join(sorted(ids)).encode()).hexdigest()[:12]


def _between(since: datetime | None, until: datetime | None) -> dict[str, datetime]:
    bounds = {"$gte": since, "$lt": until}
    return {operator: bound for operator, bound in bounds.items() if bound is not None}


def _containing(text: str) -> list[Document]:
    """Return a condition per word, the longest first: long words are rare, and the first selects the index range."""
    conditions: dict[str, Any] = {}
    for part in text.split():
        # A word with hyphens is indexed as a whole too, so its parts add nothing.
        for word in words(part)[:1]:
            conditions[word] = {"$regex": f"^{_escaped(word)}"} if part.endswith("*") else word
    longest_first = sorted(conditions, key=len, reverse=True)[:MOST_WORDS_ASKED]
    # A text of punctuation alone contains no word and must match nothing.
    return [{"words": conditions[word]} for word in longest_first] or [{"words": "\0"}]


def _escaped(word: str) -> str:
    return "".join(character if character.isalnum() else f"\\{character}" for character in word[:LONGEST_WORD])
