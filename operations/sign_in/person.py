"""A person who uses the console. Pure."""

from dataclasses import dataclass

from shared.access.permissions import STAFF, Role, grants_of
from shared.access.principal import Principal
from shared.database import Document

MOST_OF_A_NAME = 128
"""Characters of a subject or a name."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who a person is and what the person may do; `subject` never changes, `name` is for people to read."""

    subject: str
    name: str
    roles: frozenset[Role]

    @property
    def label(self) -> str:
        """The person in records: the name, and the subject behind it if that is another one.

        A name may change and may be that of another person too; the subject is neither.
        """
        return self.name if self.name == self.subject else f"{self.name} ({self.subject})"

    def principal(self) -> Principal:
        """Return the caller of the person's requests; only the roles of staff count in the console."""
        roles = self.roles & STAFF
        return Principal(self.subject, self.name, self.subject, None, roles, "session", grants_of(roles))

    def as_document(self) -> Document:
        """Return the person as it is stored."""
        return {"subject": self.subject, "name": self.name, "roles": sorted(self.roles)}


def person_of(document: Document) -> Person:
    """Return a person that was stored."""
    return Person(document["subject"], document["name"], frozenset(Role(name) for name in document["roles"]))
