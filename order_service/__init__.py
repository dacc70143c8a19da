"""Orders: accepts them over HTTP, joins the answers of the participants, and compensates orders that fail.

Owns: the orders (database `orders`). Listens to: stock.*, payment.* and provisioning.* answers (`order.inbox`).
Sends: order.created, stock.release, payment.refund, provisioning.requested, provisioning.cancel; order.* for anyone.
The saga is one page, saga.py; its participants are the rows of participants.py.
"""
