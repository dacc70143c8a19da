"""Inventory: reserves everything that an order asks for, or nothing, and takes back what an order does not keep.

Owns: products with their free quantities, delivery slots, reservations and holds (database `inventory`).
Listens to: order.created, stock.release (`inventory.inbox`).
Sends: stock.reserved, stock.reservation_failed, stock.released.
stock.py explains how stock moves without a transaction.
"""
