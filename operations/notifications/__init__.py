"""Notifications: incidents that are sent to the outside, by rules that operators keep.

`rules` and `message` decide without I/O which incidents are sent where, when, and in which words. `records` keeps the
rules and the messages, `channels` sends one message, and `dispatcher` sends what is due, again where that fails.
"""
