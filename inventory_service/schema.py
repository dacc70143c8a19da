"""The collections of the inventory service, checked at its start and by `ordersaga doctor`."""

from inventory_service import reservations, slots, stock_items
from shared import audit_log

SCHEMA = {
    stock_items.COLLECTION: stock_items.SCHEMA,
    reservations.COLLECTION: reservations.SCHEMA,
    slots.RULES_COLLECTION: slots.RULES_SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
