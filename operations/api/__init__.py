"""The operations API: what the console can do, for programs, below /api/v1.

    routes          what all routes share: staff alone, errors as problems, acts that wait for a second person
    orders          the list, one order, and the actions on it
    bulk_actions    actions on many orders
    jobs            the servers that are being bought
    catalogue       stock and delivery slots
    letters         dead letters: the list, one letter, edits, discards and restores
    letter_groups   dead letters by cause
    replays         replays and their outcomes
    records         the log of actions, and the acts that wait for a second person
    stack           incidents, and audits
    state           what is away, and the figures of the overview
    consumers       which inboxes are paused, and pausing and resuming them
    notifications   the rules that send incidents to the outside, and what came of their messages
    search          what any id is about

Packages and webhooks have routes of their own, in the services that own them.
"""

from operations.api.router import create_api

__all__ = ["create_api"]
