"""The collections of the inventory service, which are checked when it starts and by `ordersaga doctor`."""

from inventory_service import reservations, slots, stock_items

SCHEMA = {
    stock_items.COLLECTION: stock_items.SCHEMA,
    reservations.COLLECTION: reservations.SCHEMA,
    slots.RULES_COLLECTION: slots.RULES_SCHEMA,
}
