"""The collections of samples in the database of operations; only `records` writes them.

samples         one record per minute; deleted by age
sample_state    one document: up to which minute samples were taken, and the orders that were open then
"""

from pymongo import ASCENDING, IndexModel

from shared.schema import CollectionSchema

SAMPLES = "samples"
STATE = "sample_state"

KEPT_DAYS = 8
"""For how long samples are kept: the longest range of the charts, and a day."""

SCHEMA: dict[str, CollectionSchema] = {
    SAMPLES: CollectionSchema(
        (IndexModel([("at", ASCENDING)], name="expired", expireAfterSeconds=KEPT_DAYS * 24 * 3600),)
    ),
    STATE: CollectionSchema(),
}
