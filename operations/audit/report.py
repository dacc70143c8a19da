"""The result of an audit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from operations.audit.remedies import Remedy, remedy_of


class Invariant(NamedTuple):
    """One of the design's invariants: a short title, and the records over which it is checked."""

    title: str
    records: tuple[str, ...]


INVARIANTS = {
    1: Invariant("Stock is conserved, slots stay within capacity", ("products", "slots", "reservations")),
    2: Invariant("Nothing is charged twice or held without need", ("payments", "charges", "assignments", "holds")),
    3: Invariant("Every successful order has stock and payment", ("orders",)),
    4: Invariant("Every order ends once, and in time", ("orders",)),
    5: Invariant("Every balance is the sum of its postings", ("accounts", "entries", "fundPayments", "transfers")),
    6: Invariant("Every server belongs to one order, from its package", ("jobs", "addresses", "locks")),
    7: Invariant("No message is lost", ("orders", "jobs")),
    8: Invariant("No entry of the audit logs is changed, removed or inserted", ("actions",)),
}
"""The invariants that are checked, by number."""

RECORD_NAMES = {"fundPayments": "payments outside of orders", "actions": "entries"}
"""Names for people, where they differ from the field in the report."""


Subject = Literal[
    "order",
    "product",
    "slot",
    "assignment",
    "hold",
    "address",
    "lock",
    "account",
    "entry",
    "payment",
    "transfer",
    "action",
]
"""The subject of a violation; a lock is named by its package, a payment is of funds, an action by service and id."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant; `kind` distinguishes the violations of one subject."""

    invariant: int
    kind: str
    subject: Subject
    id: str
    found: str
    expected: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of the violation, which is the same when it is found again with other details."""
        return (self.subject, self.id, self.kind)

    @property
    def remedy(self) -> Remedy:
        """What to do about the violation."""
        return remedy_of(self.kind, self.subject)

    @property
    def command(self) -> str | None:
        """The command that fixes the violation or shows more of it, None if there is none."""
        return self.remedy.command_for(self.id)

    def describe(self) -> str:
        """Describe the violation in one line."""
        where = f"invariant {self.invariant}: {self.subject} {self.id}"
        return f"{where}: {self.found}; expected: {self.expected}"

    def as_json(self) -> dict[str, Any]:
        """Return the violation as a JSON document shows it."""
        return {
            "invariant": self.invariant,
            "kind": self.kind,
            self.subject: self.id,
            "found": self.found,
            "expected": self.expected,
            "fix": {"text": self.remedy.text, "command": self.command, "page": self.remedy.page},
        }


def violation_from_json(document: Mapping[str, Any]) -> Violation:
    """Return the violation that a JSON document shows; the field that no violation has otherwise is its subject."""
    subject: Any = next(name for name in document if name in get_args(Subject))
    same = {name: document[name] for name in ("invariant", "kind", "found", "expected")}
    return Violation(subject=subject, id=document[subject], **same)


@dataclass(slots=True)
class Report:
    """The violations, the number of records checked, and more information for operators.

    `unlisted` counts the suspicions beyond those that were checked again and listed.
    """

    checked: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    information: dict[str, Any] = field(default_factory=dict)
    unlisted: int = 0

    @property
    def ok(self) -> bool:
        """True if the books balance."""
        return not self.violations and not self.unlisted

    def of_invariant(self, number: int) -> list[Violation]:
        """Return the violations of one invariant."""
        return [violation for violation in self.violations if violation.invariant == number]

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        return {
            "ok": self.ok,
            "checked": self.checked,
            "violations": [violation.as_json() for violation in self.violations],
            "unlisted": self.unlisted,
            "information": self.information,
        }
