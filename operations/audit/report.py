"""What an audit comes to."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Invariant(NamedTuple):
    """One of the design's invariants, in a few words, and the records that it is checked over."""

    title: str
    records: tuple[str, ...]


INVARIANTS = {
    1: Invariant("Stock is conserved, slots keep their limit", ("products", "slots", "reservations")),
    2: Invariant("Nothing is charged twice or held in vain", ("payments", "charges", "assignments")),
    3: Invariant("What goes through has stock and payment", ("orders",)),
    4: Invariant("Every order ends, once and in time", ("orders",)),
    5: Invariant("Every balance is what its postings come to", ("accounts", "entries", "fundPayments", "transfers")),
    6: Invariant("Every server is one order's, from its package", ("jobs", "addresses", "locks")),
    7: Invariant("No message is lost", ("orders", "jobs")),
}
"""Those that are checked, by their numbers."""


Subject = Literal[
    "order", "product", "slot", "assignment", "address", "lock", "account", "entry", "payment", "transfer"
]
"""What a violation is about; a lock is named by its package, a payment is one of the funds'."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong; `kind` tells apart what may be wrong with one subject under one invariant."""

    invariant: int
    kind: str
    subject: Subject
    id: str
    found: str
    expected: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What is the same when the same thing is found twice, whatever the details."""
        return (self.subject, self.id, self.kind)

    def describe(self) -> str:
        """Return in one line what is wrong."""
        where = f"invariant {self.invariant}: {self.subject} {self.id}"
        return f"{where}: {self.found}; should be: {self.expected}"

    def as_json(self) -> dict[str, Any]:
        """The violation as the JSON document shows it."""
        return {
            "invariant": self.invariant,
            "kind": self.kind,
            self.subject: self.id,
            "found": self.found,
            "expected": self.expected,
        }


@dataclass(slots=True)
class Report:
    """The verdict, what it rests on, and what an operator may want to know besides.

    `unlisted` is how many suspicions there were beyond those that were looked at twice and listed.
    """

    checked: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    information: dict[str, Any] = field(default_factory=dict)
    unlisted: int = 0

    @property
    def ok(self) -> bool:
        """Whether the books balance."""
        return not self.violations and not self.unlisted

    def of_invariant(self, number: int) -> list[Violation]:
        """The violations of one invariant."""
        return [violation for violation in self.violations if violation.invariant == number]

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "ok": self.ok,
            "checked": self.checked,
            "violations": [violation.as_json() for violation in self.violations],
            "unlisted": self.unlisted,
            "information": self.information,
        }
