"""Removes orders with everything recorded about them: what the cleanup and the archive share.

`removable` decides without I/O whether an order may go; `orders` reads and deletes the records of a group of orders in
one transaction over all databases.
"""
