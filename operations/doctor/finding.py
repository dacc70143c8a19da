"""The result of a check."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    A "note" is information, something "wrong" must be fixed; `fix` says how.
    """

    subject: str
    outcome: Outcome
    detail: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding as JSON."""
        return {"what": self.subject, "outcome": self.outcome, "detail": self.detail, "mend": self.fix}


def ok(subject: str, detail: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(subject, "ok", detail)


def note(subject: str, detail: str, fix: str = "") -> Finding:
    """Return a finding for information only."""
    return Finding(subject, "note", detail, fix)


def wrong(subject: str, detail: str, fix: str) -> Finding:
    """Return a finding that must be fixed."""
    return Finding(subject, "wrong", detail, fix)
