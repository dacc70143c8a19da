"""Fingerprints of failures: those with one cause are one group, see `shared.bus.patterns`. Pure."""

import hashlib


def fingerprint(queue: str, routing_key: str, error_type: str, message_pattern: str) -> str:
    """Return the id of the group of failures with this queue, routing key, error type and message pattern."""
    parts = "\0".join((queue, routing_key, error_type, message_pattern))
    return hashlib.sha256(parts.encode("utf-8", "backslashreplace")).hexdigest()[:16]
