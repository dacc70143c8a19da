"""Notification: tells the systems of shops what happens to their orders, by webhooks that they can verify.

Owns: the endpoints that owners registered, and the deliveries to them (database `notifications`).
Listens to: order.created and the other order events, package.low_ips (`notification.inbox`).
Sends: nothing to other services.
dispatcher.py explains how deliveries are shared between processes and survive a crash.
"""
