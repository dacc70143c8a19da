"""Payments: charges an order once, and returns the money when the order does not go through.

Owns the database `<prefix>_payments` (payments, and the simulated gateway's own book).
Listens to order.created and payment.refund on payment.inbox.
Sends payment.processed, payment.failed and payment.refunded.
"""
