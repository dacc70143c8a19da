"""The collections of the order service; its start and `ordersaga doctor` check them."""

from order_service import orders
from shared import audit_log

SCHEMA = {orders.COLLECTION: orders.SCHEMA, audit_log.COLLECTION: audit_log.SCHEMA}
