"""The collections of the inventory service, which are checked when it starts and by `ordersaga doctor`."""

from inventory_service import reservations, resources, slots

SCHEMA = {
    resources.COLLECTION: resources.SCHEMA,
    reservations.COLLECTION: reservations.SCHEMA,
    slots.RULES_COLLECTION: slots.RULES_SCHEMA,
}
