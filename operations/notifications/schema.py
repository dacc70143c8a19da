"""The collections of notifications in the database of operations; only `records` writes them.

notification_rules   which incidents are sent where, and up to which one that was done
notifications        one record per message, with what came of it; deleted by age
"""

from pymongo import ASCENDING, DESCENDING, IndexModel

from shared.schema import CollectionSchema

RULES = "notification_rules"
NOTIFICATIONS = "notifications"

KEPT_DAYS = 90

SCHEMA: dict[str, CollectionSchema] = {
    RULES: CollectionSchema(),
    NOTIFICATIONS: CollectionSchema(
        (
            IndexModel([("status", ASCENDING), ("dueAt", ASCENDING)], name="due"),
            IndexModel([("at", DESCENDING)], name="expired", expireAfterSeconds=KEPT_DAYS * 24 * 3600),
        )
    ),
}
