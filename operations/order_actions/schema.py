"""The collections of actions on many orders in the database of operations; only `bulk` writes them. Nothing is deleted.

bulk_actions          one record per action on many orders
bulk_action_orders    one record per order of such an action, with its result
"""

from pymongo import ASCENDING, DESCENDING, IndexModel

from shared.schema import CollectionSchema

BULK_ACTIONS = "bulk_actions"
BULK_ACTION_ORDERS = "bulk_action_orders"

SCHEMA: dict[str, CollectionSchema] = {
    BULK_ACTIONS: CollectionSchema(
        (
            IndexModel([("status", ASCENDING), ("at", ASCENDING)], name="unfinished"),
            IndexModel([("at", DESCENDING)], name="newest"),
        )
    ),
    BULK_ACTION_ORDERS: CollectionSchema(
        (
            IndexModel([("bulk", ASCENDING), ("outcome", ASCENDING), ("claimedAt", ASCENDING)], name="open"),
            IndexModel([("bulk", ASCENDING), ("position", ASCENDING)], name="in-order"),
        )
    ),
}
