"""The collections of approvals in the database of operations; only `records` writes them. Nothing is deleted.

approvals         one record per act that somebody asked for; see `records`
approval_policy   one document: the acts that need a second person, as the console's settings name them
"""

from pymongo import ASCENDING, DESCENDING, IndexModel

from shared.schema import CollectionSchema

APPROVALS = "approvals"
POLICY = "approval_policy"

SCHEMA: dict[str, CollectionSchema] = {
    APPROVALS: CollectionSchema(
        (
            IndexModel([("at", DESCENDING)], name="newest"),
            IndexModel([("status", ASCENDING), ("startedAt", ASCENDING)], name="unfinished"),
            IndexModel([("subject", ASCENDING), ("at", DESCENDING)], name="subject"),
        )
    ),
    POLICY: CollectionSchema(),
}
