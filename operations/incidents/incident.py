"""An incident: something that happened to the stack, once. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

CRITICAL, WARNING, INFO = SEVERITIES = ("critical", "warning", "info")

KINDS: Mapping[str, str] = {
    "process-down": CRITICAL,
    "process-not-ready": WARNING,
    "process-back": INFO,
    "restarted": INFO,
    "deployed": INFO,
    "server-away": CRITICAL,
    "server-back": INFO,
    "failover": WARNING,
    "member-away": WARNING,
    "member-back": INFO,
    "paused": WARNING,
    "resumed": INFO,
    "breaker-open": CRITICAL,
    "breaker-closed": INFO,
    "package-low": WARNING,
    "package-ok": INFO,
    "audit-failed": CRITICAL,
    "audit-ok": INFO,
    "dead-letters": WARNING,
    "bulk-ended": INFO,
    "flapping": WARNING,
}
"""The severity of each kind of incident."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What happened: `text` says it in a sentence, `link` is the page of the console that it is about."""

    id: str
    at: datetime
    kind: str
    text: str
    subject: str
    service: str | None = None
    link: str | None = None

    @property
    def severity(self) -> str:
        """How bad it is."""
        return KINDS.get(self.kind, WARNING)

    def as_document(self) -> dict[str, Any]:
        """Return the record of the incident."""
        fields = asdict(self)
        return {"_id": fields.pop("id"), **fields, "severity": self.severity}


def incident_from_json(document: Mapping[str, Any]) -> Incident:
    """Return the incident that a JSON document shows."""
    fields = {name: document[name] for name in ("id", "kind", "text", "subject", "service", "link")}
    return Incident(at=datetime.fromisoformat(document["at"]), **fields)


def incident_of(document: Mapping[str, Any]) -> Incident:
    """Return the incident of a record."""
    fields = {name: value for name, value in document.items() if name not in ("_id", "severity", "recordedAt")}
    return Incident(id=document["_id"], **fields)
