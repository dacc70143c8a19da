"""The collections of the order service, which are checked when it starts and by `ordersaga doctor`."""

from order_service import orders

SCHEMA = {orders.COLLECTION: orders.SCHEMA}
