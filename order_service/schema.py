"""The collections of the order service; its start and `ordersaga doctor` check them."""

from order_service import orders

SCHEMA = {orders.COLLECTION: orders.SCHEMA}
