"""The collections of incidents in the database of operations; only `records` writes them.

incidents         what happened to the stack; deleted by age
incident_states   what was last observed of each subject, and incidents that are still to be written
"""

from pymongo import ASCENDING, DESCENDING, IndexModel

from shared.schema import CollectionSchema

INCIDENTS = "incidents"
STATES = "incident_states"

KEPT_DAYS = 90
"""For how long incidents are kept."""

_NEWEST = [("at", DESCENDING), ("_id", DESCENDING)]

SCHEMA: dict[str, CollectionSchema] = {
    INCIDENTS: CollectionSchema(
        (
            IndexModel(_NEWEST, name="newest"),
            IndexModel([("severity", ASCENDING), *_NEWEST], name="by-severity"),
            IndexModel([("kind", ASCENDING), *_NEWEST], name="by-kind"),
            IndexModel([("service", ASCENDING), *_NEWEST], name="by-service"),
            IndexModel([("recordedAt", ASCENDING)], name="recorded"),
            IndexModel([("at", DESCENDING)], name="expired", expireAfterSeconds=KEPT_DAYS * 24 * 3600),
        )
    ),
    STATES: CollectionSchema(),
}
