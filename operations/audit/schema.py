"""The collections of audits in the database of operations; only `runs` writes them.

audit_runs    one record per audit of the console or its schedule, with the result; deleted by age
audit_turn    one document: the audit that is under way, and when the next one may begin
"""

from pymongo import DESCENDING, IndexModel

from shared.schema import CollectionSchema

RUNS = "audit_runs"
TURN = "audit_turn"

KEPT_DAYS = 90
"""For how long the results of audits are kept."""

SCHEMA: dict[str, CollectionSchema] = {
    RUNS: CollectionSchema(
        (IndexModel([("startedAt", DESCENDING)], name="expired", expireAfterSeconds=KEPT_DAYS * 24 * 3600),)
    ),
    TURN: CollectionSchema(),
}
