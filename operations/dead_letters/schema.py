"""The collections of dead letters in the database of operations, with their indexes.

    dead_letters          one letter per failed message, with all its replays; see `records` and `letter`
    dead_letter_bodies    the pieces of bodies that are too big for a letter; see `records`
    dead_letter_groups    letters with the same fingerprint, and the operators' notes on them; see `groups`
    replays               one record per replay, with its progress; see `replays`

Nothing is ever deleted. Only the module named writes a collection.
"""

from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel

from shared.schema import CollectionSchema

LETTERS = "dead_letters"
BODIES = "dead_letter_bodies"
GROUPS = "dead_letter_groups"
REPLAYS = "replays"

NEWEST_FIRST = [("lastFailedAt", DESCENDING), ("_id", DESCENDING)]

BY_GROUP = "by-group"
ORDERS_OF_GROUP = "orders-of-group"

FAILED_AGAIN: dict[str, Any] = {"failures": {"$exists": True}}
"""Letters whose replay has failed, under a release that records what they failed with before."""


def _newest_first_by(*fields: str, name: str) -> IndexModel:
    return IndexModel([*((field, ASCENDING) for field in fields), *NEWEST_FIRST], name=name)


SCHEMA: dict[str, CollectionSchema] = {
    LETTERS: CollectionSchema(
        (
            _newest_first_by(name="newest"),
            _newest_first_by("status", name="by-status"),
            _newest_first_by("service", "status", name="by-service"),
            _newest_first_by("error.type", "status", name="by-error"),
            _newest_first_by("routingKey", "status", name="by-type"),
            _newest_first_by("orderId", name="by-order"),
            _newest_first_by("words", name="by-word"),
            # Covers the list of groups: it is counted without reading a letter.
            IndexModel(
                [("fingerprint", ASCENDING), ("status", ASCENDING), *NEWEST_FIRST, ("firstFailedAt", ASCENDING)],
                name=BY_GROUP,
            ),
            # Covers the orders that a group is about, for its impact.
            IndexModel(
                [("fingerprint", ASCENDING), ("status", ASCENDING), ("orderId", ASCENDING)], name=ORDERS_OF_GROUP
            ),
            IndexModel([("status", ASCENDING), ("firstFailedAt", ASCENDING)], name="oldest"),
            IndexModel([("status", ASCENDING), ("replays.replay", ASCENDING)], name="of-replay"),
            # Of letters that failed again: the history of the groups that they were in before.
            IndexModel(
                [("failures.fingerprint", ASCENDING), ("failures.at", ASCENDING)],
                name="by-former-group",
                partialFilterExpression=FAILED_AGAIN,
            ),
            IndexModel([("failures.at", ASCENDING)], name="by-former-failure", partialFilterExpression=FAILED_AGAIN),
            IndexModel(
                [("status", ASCENDING), ("claimedBy", ASCENDING)],
                name="claimed",
                partialFilterExpression={"claimedBy": {"$exists": True}},
            ),
            IndexModel(
                [("nameless", ASCENDING)],
                name="nameless",
                partialFilterExpression={"unacknowledged": {"$exists": True}},
            ),
        )
    ),
    BODIES: CollectionSchema(),
    GROUPS: CollectionSchema((IndexModel([("status", ASCENDING)], name="by-status"),)),
    REPLAYS: CollectionSchema(
        (
            IndexModel([("at", DESCENDING)], name="newest"),
            IndexModel([("status", ASCENDING), ("lease.until", ASCENDING)], name="unfinished"),
        )
    ),
}
