"""The caller of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from shared.access.permissions import Grants, Permission, Reach, Role, grants_of, smaller_of

Method = Literal["key", "token", "session", "off"]
"""How a caller was recognized: by an API key, a JWT, a session of the console, or not at all (ORDERSAGA_AUTH=off)."""

OWNER_FIELD = "ownerId"
"""The field of stored records that names their owner."""
PERSON_FIELD = "userId"
"""The field of stored records that names the person whom they concern."""

Visible = Mapping[str, str | None]
"""The part of a MongoDB query that leaves only the records that a caller may see or change."""
EVERYTHING: Visible = {}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what the caller may do."""

    id: str
    """Names the caller in the audit log: `key:<id of the key>`, or the subject of a token or session."""
    name: str
    """For people to read."""
    owner: str | None
    """Owns the records that the caller creates; None only with ORDERSAGA_AUTH=off."""
    subject: str | None
    """The `userId` of a customer; None for callers that are no single person."""
    roles: frozenset[Role]
    method: Method
    grants: Grants
    via: str | None = None
    """The id of the caller that acts for this one, such as the console; None if it calls itself."""
    via_roles: frozenset[Role] = frozenset()
    """The roles of the caller that acts for this one."""

    def may(self, permission: Permission) -> bool:
        """Return whether the caller has the permission, for some records at least."""
        return permission in self.grants

    def reaches_all(self, permission: Permission) -> bool:
        """Return whether the permission extends to the records of every owner."""
        return self.grants.get(permission) is Reach.ALL

    @property
    def through_console(self) -> bool:
        """Return whether the console acts for the caller. No other program but one of an admin can say so."""
        return Role.ADMIN in self.via_roles

    def visible(self, permission: Permission, *, person: str = PERSON_FIELD) -> Visible:
        """Return the part of a MongoDB query that leaves only the records which the permission extends to.

        `person` is the field that names the person in these records. Records without an owner match only a permission
        for all records. Raises PermissionError if the caller does not have the permission: the route checks it first.
        """
        reach = self.grants.get(permission)
        if reach is None:
            raise PermissionError(f"{self.id} does not have {permission}")
        if reach is Reach.ALL:
            return EVERYTHING
        # An owner or subject of None would match the records that have none.
        own = {OWNER_FIELD: self.owner or ""}
        return own if reach is Reach.OWNER else own | {person: self.subject or ""}

    def acting_for(self, person: str, roles: frozenset[Role]) -> "Principal":
        """Return the principal of a person whom this caller acts for: it may do what both may do."""
        return replace(
            self,
            id=person,
            name=person,
            roles=roles,
            grants=smaller_of(self.grants, grants_of(roles)),
            via=self.id,
            via_roles=self.roles,
        )


def anonymous() -> Principal:
    """Return the caller of a system without authentication, who may do everything."""
    roles = frozenset({Role.ADMIN})
    return Principal("anonymous", "anonymous", None, None, roles, "off", grants_of(roles))
