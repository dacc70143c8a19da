"""The collections of operations, checked at every start of its process and by `ordersaga doctor`."""

from operations import actions
from operations.dead_letters.schema import SCHEMA as DEAD_LETTER_SCHEMA
from shared.schema import CollectionSchema

SCHEMA = {
    **DEAD_LETTER_SCHEMA,
    actions.COLLECTION: CollectionSchema(actions.INDEXES),
}
