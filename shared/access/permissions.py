"""Permissions and roles, as one table: which role may do what, and with whose records."""

import functools
from collections.abc import Mapping
from enum import IntEnum, StrEnum


class Permission(StrEnum):
    """Something that a route does, as `area:action`."""

    SELF_READ = "self:read"
    ORDERS_PLACE = "orders:place"
    ORDERS_READ = "orders:read"
    ORDERS_CANCEL = "orders:cancel"
    ORDERS_FULFIL = "orders:fulfil"
    ORDERS_DECIDE = "orders:decide"
    CREDENTIALS_READ = "credentials:read"
    CATALOGUE_READ = "catalogue:read"
    CATALOGUE_WRITE = "catalogue:write"
    SLOTS_ASSIGN = "slots:assign"
    HOLDS_READ = "holds:read"
    HOLDS_WRITE = "holds:write"
    FUNDS_READ = "funds:read"
    FUNDS_WRITE = "funds:write"
    PROVISIONING_READ = "provisioning:read"
    LOCKS_CLEAR = "locks:clear"
    LETTERS_READ = "letters:read"
    LETTERS_DECIDE = "letters:decide"
    LETTERS_EDIT = "letters:edit"
    PERSONAL_ERASE = "personal:erase"
    KEYS_MANAGE = "keys:manage"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    METRICS_READ = "metrics:read"


class Reach(IntEnum):
    """Whose records a permission extends to; a larger value includes the smaller ones."""

    PERSON = 1
    """Those of one person: of the principal's owner, and with the principal's subject as `userId`."""
    OWNER = 2
    """Those of the principal's owner."""
    ALL = 3
    """Those of every owner."""


class Role(StrEnum):
    """A fixed set of permissions."""

    CUSTOMER = "customer"
    """A person who buys."""
    CLIENT = "client"
    """The backend of a shop."""
    VIEWER = "viewer"
    OPERATOR = "operator"
    ACCOUNTANT = "accountant"
    MANAGER = "manager"
    """Looks after products, stock, slots and packages."""
    ADMIN = "admin"


STAFF = frozenset(Role) - {Role.CUSTOMER, Role.CLIENT}
"""The roles of people who run the system; only they may sign in to the console."""

Grants = Mapping[Permission, Reach]
"""The permissions of a principal, each with its reach. A permission that is missing is not granted."""

_P = Permission
_READS = {_P.SELF_READ: Reach.ALL, _P.CATALOGUE_READ: Reach.ALL}
_STAFF_READS = _READS | {_P.ORDERS_READ: Reach.ALL, _P.HOLDS_READ: Reach.ALL}

ROLES: Mapping[Role, Grants] = {
    Role.CUSTOMER: _READS
    | {
        _P.ORDERS_PLACE: Reach.PERSON,
        _P.ORDERS_READ: Reach.PERSON,
        _P.ORDERS_CANCEL: Reach.PERSON,
        _P.CREDENTIALS_READ: Reach.PERSON,
        _P.HOLDS_READ: Reach.PERSON,
        _P.HOLDS_WRITE: Reach.PERSON,
        _P.FUNDS_READ: Reach.PERSON,
    },
    Role.CLIENT: _READS
    | {
        _P.ORDERS_PLACE: Reach.OWNER,
        _P.ORDERS_READ: Reach.OWNER,
        _P.ORDERS_CANCEL: Reach.OWNER,
        _P.ORDERS_FULFIL: Reach.OWNER,
        _P.CREDENTIALS_READ: Reach.OWNER,
        _P.SLOTS_ASSIGN: Reach.OWNER,
        _P.HOLDS_READ: Reach.OWNER,
        _P.HOLDS_WRITE: Reach.OWNER,
        _P.FUNDS_READ: Reach.OWNER,
        _P.WEBHOOKS_READ: Reach.OWNER,
        _P.WEBHOOKS_WRITE: Reach.OWNER,
    },
    Role.VIEWER: _STAFF_READS
    | {
        _P.FUNDS_READ: Reach.ALL,
        _P.PROVISIONING_READ: Reach.ALL,
        _P.LETTERS_READ: Reach.ALL,
        _P.WEBHOOKS_READ: Reach.ALL,
        _P.METRICS_READ: Reach.ALL,
    },
    Role.OPERATOR: _STAFF_READS
    | {
        _P.ORDERS_CANCEL: Reach.ALL,
        _P.ORDERS_FULFIL: Reach.ALL,
        _P.ORDERS_DECIDE: Reach.ALL,
        _P.SLOTS_ASSIGN: Reach.ALL,
        _P.HOLDS_WRITE: Reach.ALL,
        _P.FUNDS_READ: Reach.ALL,
        _P.PROVISIONING_READ: Reach.ALL,
        _P.LOCKS_CLEAR: Reach.ALL,
        _P.LETTERS_READ: Reach.ALL,
        _P.LETTERS_DECIDE: Reach.ALL,
        _P.WEBHOOKS_READ: Reach.ALL,
        _P.WEBHOOKS_WRITE: Reach.ALL,
        _P.METRICS_READ: Reach.ALL,
    },
    Role.ACCOUNTANT: _STAFF_READS | {_P.FUNDS_READ: Reach.ALL, _P.FUNDS_WRITE: Reach.ALL},
    Role.MANAGER: _STAFF_READS
    | {
        _P.CATALOGUE_WRITE: Reach.ALL,
        _P.SLOTS_ASSIGN: Reach.ALL,
        _P.HOLDS_WRITE: Reach.ALL,
        _P.PROVISIONING_READ: Reach.ALL,
    },
    Role.ADMIN: dict.fromkeys(Permission, Reach.ALL),
}
"""What each role grants. docs/access.md shows the same as a table."""


@functools.cache
def grants_of(roles: frozenset[Role]) -> Grants:
    """Return everything that some of the roles grants, with the largest reach."""
    granted: dict[Permission, Reach] = {}
    for role in roles:
        for permission, reach in ROLES[role].items():
            granted[permission] = max(reach, granted.get(permission, reach))
    return granted


def smaller_of(one: Grants, other: Grants) -> Grants:
    """Return what both grant, with the smaller reach."""
    return {permission: min(one[permission], other[permission]) for permission in one.keys() & other.keys()}


def parse_role(name: str) -> Role:
    """Return the role of this name. Raises ValueError with the allowed names."""
    try:
        return Role(name)
    except ValueError:
        raise ValueError(f"{name[:100]!r} is not a role; allowed are {', '.join(Role)}") from None
