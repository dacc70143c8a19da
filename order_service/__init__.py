"""Orders: takes them over HTTP, joins what inventory and payment answer, and compensates what does not come to be.

Owns: the orders (database `orders`). Listens to: stock.*, payment.* and provisioning.* answers (`order.inbox`).
Sends: order.created, stock.release, payment.refund, provisioning.requested, provisioning.cancel; order.* for anyone.
The saga is one page: saga.py.
"""
