"""The words of a message about incidents. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from operations.incidents.incident import CRITICAL, SEVERITIES, Incident
from shared.clock import to_rfc3339

MOST_LISTED = 40


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a rule; `id` is the same for each attempt. `page` is the address of the incidents, if it is known.

    `counts` is of all its incidents, by severity; it lists MOST_LISTED of them, the severest first.
    """

    id: str
    rule: str
    at: datetime
    incidents: Sequence[Incident]
    counts: Mapping[str, int]
    page: str | None = None
    test: bool = False

    @property
    def count(self) -> int:
        """How many incidents it is about."""
        return sum(self.counts.values())

    @property
    def title(self) -> str:
        """One line for people."""
        if self.test:
            return f"ordersaga: test of the rule {self.rule}"
        if self.count == 1:
            return f"ordersaga: {self.incidents[0].severity}: {self.incidents[0].text}"
        counts = [(self.counts.get(severity, 0), severity) for severity in SEVERITIES]
        named = ", ".join(f"{count:,} {severity}" for count, severity in counts if count)
        return f"ordersaga: {self.count:,} incidents ({named})"

    @property
    def text(self) -> str:
        """The whole message as plain text."""
        if self.test:
            lines = ["This is a test. Incidents that the rule is about are sent here."]
        else:
            lines = [f"{each.at:%Y-%m-%d %H:%M:%S} UTC  {each.severity}  {each.text}" for each in self.incidents]
        if self.count > len(self.incidents):
            lines.append(f"and {self.count - len(self.incidents):,} more")
        if self.page:
            lines.append(self.page)
        return "\n".join(lines)

    @property
    def is_urgent(self) -> bool:
        """True if an incident is critical."""
        return bool(self.counts.get(CRITICAL))

    def as_json(self) -> dict[str, Any]:
        """Return the body for a webhook."""
        return {
            "type": "incidents.test" if self.test else "incidents",
            "timestamp": to_rfc3339(self.at),
            "data": {
                "rule": self.rule,
                "count": self.count,
                "bySeverity": {severity: self.counts.get(severity, 0) for severity in SEVERITIES},
                "incidents": [
                    {
                        "id": each.id,
                        "at": to_rfc3339(each.at),
                        "kind": each.kind,
                        "severity": each.severity,
                        "service": each.service,
                        "text": each.text,
                    }
                    for each in self.incidents
                ],
                "page": self.page,
            },
        }

    def as_slack(self) -> dict[str, Any]:
        """Return the body for an incoming webhook of Slack, or of a program that takes the same."""
        escaped = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        title = self.title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        mark = ":red_circle: " if self.is_urgent else ""
        return {"text": f"{mark}*{title}*\n{escaped}"}


def collected(incidents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the record of a message keeps of its incidents, which are records in order of time."""
    severest = sorted(incidents, key=lambda each: SEVERITIES.index(each["severity"]))
    counts = Counter(each["severity"] for each in incidents)
    return {"incidents": severest[:MOST_LISTED], "count": len(incidents), "counts": dict(counts)}
