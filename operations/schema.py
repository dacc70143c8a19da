"""The collections of operations, which are checked when its process starts and by `ordersaga doctor`."""

from operations import actions
from operations.dead_letters import records
from shared.schema import CollectionSchema

SCHEMA = {
    **records.SCHEMA,
    actions.COLLECTION: CollectionSchema(actions.INDEXES),
}
