"""Notification rules: which incidents go where, and when a message is due. Pure.

Incidents are collected, so that an outage is one message: the first one waits for GATHER, and the next message of the
same rule does not follow before INTERVAL.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from operations.incidents.incident import KINDS, SEVERITIES
from shared.services import SERVICES

GATHER = timedelta(seconds=30)
"""How long the first incident waits for others."""

INTERVAL = timedelta(minutes=5)
"""The shortest time between two messages of one rule."""

MARGIN = timedelta(seconds=5)
"""How far the clocks of two members of MongoDB may differ: what was recorded within it is left for the next message."""

RETRIES = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 3600, 7200))
"""The pauses before further attempts to send a message."""

WEBHOOK, SLACK, EMAIL = CHANNELS = ("webhook", "slack", "email")

MOST_ADDRESSES = 20
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,49}")
_ADDRESS = re.compile(r"[^\s@,;<>\"()\[\]\\:]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: the incidents that it is about (an empty field means all), and the channel, with addresses for e-mail."""

    name: str
    channel: str
    to: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    enabled: bool = True

    def objections(self) -> list[tuple[str, str]]:
        """Return what is wrong with the rule, by field."""
        found: list[tuple[str, str]] = []
        if not _NAME.fullmatch(self.name):
            found.append(("name", "must have 1 to 50 lower-case letters, digits and hyphens"))
        if self.channel not in CHANNELS:
            found.append(("channel", f"must be one of {', '.join(CHANNELS)}"))
        if bool(self.to) != (self.channel == EMAIL):
            found.append(("to", "is needed for e-mail, and only for it"))
        if wrong := [address for address in self.to if not address.isascii() or not _ADDRESS.fullmatch(address)]:
            found.append(("to", f"{wrong[0][:100]!r} is not an e-mail address"))
        if len(self.to) > MOST_ADDRESSES:
            found.append(("to", f"has more than {MOST_ADDRESSES} addresses"))
        known: Mapping[str, Sequence[str]] = {
            "kinds": tuple(KINDS),
            "severities": SEVERITIES,
            "services": tuple(SERVICES),
        }
        for field, names in known.items():
            if unknown := [name for name in getattr(self, field) if name not in names]:
                found.append((field, f"{unknown[0][:100]!r} is not one of {', '.join(names)}"))
        return found

    def describe(self, *, addresses: bool = True) -> str:
        """Describe the rule in one line; without addresses, for logs, which keep it for ever."""
        chosen = (("kind", self.kinds), ("severity", self.severities), ("service", self.services))
        about = "; ".join(f"{name} {', '.join(values)}" for name, values in chosen if values) or "all incidents"
        to = ", ".join(self.to) if addresses else f"{len(self.to)} address{'es' if len(self.to) != 1 else ''}"
        return f"{about} → {self.channel}" + (f" to {to}" if self.to else "")

    def as_json(self) -> dict[str, Any]:
        """Return the rule as a JSON document shows it."""
        return {
            "name": self.name,
            "channel": self.channel,
            "to": list(self.to),
            "kinds": list(self.kinds),
            "severities": list(self.severities),
            "services": list(self.services),
            "enabled": self.enabled,
        }


def rule_from_json(document: Mapping[str, Any]) -> Rule:
    """Return the rule that a JSON document shows."""
    lists = {name: tuple(document[name]) for name in ("to", "kinds", "severities", "services")}
    return Rule(document["name"], document["channel"], **lists, enabled=document["enabled"])


def split(text: str | None) -> tuple[str, ...]:
    """Return the words of a text that are separated by commas or white space, each once."""
    return tuple(dict.fromkeys(word for word in re.split(r"[,\s]+", text or "") if word))


def is_due(oldest: datetime, last_message: datetime | None, now: datetime) -> bool:
    """Return whether incidents are sent now: `oldest` is when the first of them was recorded."""
    return now - oldest >= GATHER and (last_message is None or now - last_message >= INTERVAL)


def next_attempt(attempts: int, now: datetime) -> datetime | None:
    """Return when to send a message again after so many attempts have failed; None if never."""
    return now + RETRIES[attempts - 1] if attempts <= len(RETRIES) else None
