"""The collections of the order service; its start and `ordersaga doctor` check them."""

from order_service import orders
from shared import audit_log
from shared.pausing import records as pauses

SCHEMA = {
    orders.COLLECTION: orders.SCHEMA,
    pauses.COLLECTION: pauses.SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
