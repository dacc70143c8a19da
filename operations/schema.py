"""The collections of operations; its process and `ordersaga doctor` check them."""

from operations import actions
from operations.dead_letters.schema import SCHEMA as DEAD_LETTER_SCHEMA
from shared.schema import CollectionSchema

SCHEMA = {
    **DEAD_LETTER_SCHEMA,
    actions.COLLECTION: CollectionSchema(actions.INDEXES),
}
