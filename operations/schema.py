"""The collections of operations; its process and `ordersaga doctor` check them."""

from operations import actions
from operations.approvals.schema import SCHEMA as APPROVAL_SCHEMA
from operations.dead_letters.schema import SCHEMA as DEAD_LETTER_SCHEMA
from operations.sign_in.schema import SCHEMA as SIGN_IN_SCHEMA
from shared.schema import CollectionSchema

SCHEMA = {
    **DEAD_LETTER_SCHEMA,
    **SIGN_IN_SCHEMA,
    **APPROVAL_SCHEMA,
    actions.COLLECTION: CollectionSchema(actions.INDEXES),
}
