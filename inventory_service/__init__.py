"""Stock: holds for each order all that it asks for, or nothing, and gives back what an order does not keep.

Owns: the products with their free quantities, and the reservations (database `inventory`).
Listens to: order.created, stock.release (`inventory.inbox`).
Sends: stock.reserved, stock.reservation_failed, stock.released. How stock moves without a transaction: stock.py.
"""
