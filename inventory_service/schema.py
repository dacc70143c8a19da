"""The collections of the inventory service, checked at its start and by `ordersaga doctor`."""

from inventory_service import hold_limits, reservations, slots, stock_items
from shared import audit_log
from shared.pausing import records as pauses

SCHEMA = {
    stock_items.COLLECTION: stock_items.SCHEMA,
    reservations.COLLECTION: reservations.SCHEMA,
    hold_limits.COLLECTION: hold_limits.SCHEMA,
    slots.RULES_COLLECTION: slots.RULES_SCHEMA,
    pauses.COLLECTION: pauses.SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
