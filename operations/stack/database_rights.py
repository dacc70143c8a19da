"""Who may do what in MongoDB: a user for each service with the least rights, as one table. Pure.

From it derive the users that `ordersaga database prepare` creates. docs/database.md shows the table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.services import CONSOLE, INVENTORY, ORDER, PAYMENT, PROVISIONING, SERVICES, Service

MAINTENANCE = "maintenance"
"""The user for the commands of the machine's owner. No process of the stack knows its password."""

USERS = (*(service.user for service in SERVICES.values()), MAINTENANCE)

READ_BY_OPERATIONS: Mapping[str, tuple[str, ...]] = {
    ORDER.name: ("orders", "actions"),
    INVENTORY.name: ("products", "reservations", "slot_rules", "actions"),
    PAYMENT.name: (
        "payments",
        "accounts",
        "entries",
        "fund_payments",
        "bank_transfers",
        "gateway_charges",
        "stripe_intents",
        "actions",
    ),
    PROVISIONING.name: ("jobs", "locks", "addresses", "packages", "actions"),
}
"""The collections of the other services that operations reads, by the service's name."""

WITHHELD: Mapping[str, tuple[str, ...]] = {PAYMENT.name: ("idempotency", "transaction_sessions")}
"""The collections that operations does not need: answers to clients, and sessions of transactions."""

APPEND_ONLY = "actions"
"""The audit log in the database of operations: entries are added and read, never changed or deleted."""

PROBED = ("ordersaga_doctor", "nothing")
"""The database and the collection that `ordersaga doctor` reads in a transaction; neither exists."""

_FIND = ("find",)
_APPEND = ("find", "insert", "listIndexes")
_OWN = (
    "find",
    "insert",
    "update",
    "remove",
    "createCollection",
    "createIndex",
    "dropIndex",
    "collMod",
    "listIndexes",
)


@dataclass(frozen=True, slots=True)
class DatabaseUser:
    """A user, the database in which it is created (`authSource`), and its roles."""

    name: str
    database: str
    roles: tuple[tuple[str, str], ...]
    """Each role's name and the database of the role."""


@dataclass(frozen=True, slots=True)
class DatabaseRole:
    """A role of our own in the database `admin`: the actions on each collection, and the roles that it includes."""

    name: str
    privileges: tuple[tuple[str, str, tuple[str, ...]], ...]
    """The database, the collection (empty for all) and the actions."""
    includes: tuple[tuple[str, str], ...] = ()

    def as_documents(self) -> dict[str, list[dict[str, Any]]]:
        """Return `privileges` and `roles` in the form of MongoDB's command `createRole`."""
        return {
            "privileges": [
                {"resource": {"db": database, "collection": collection}, "actions": list(actions)}
                for database, collection, actions in self.privileges
            ],
            "roles": role_documents(self.includes),
        }


def role_documents(roles: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return roles in the form that MongoDB's commands take."""
    return [{"role": role, "db": database} for role, database in roles]


def roles_of(prefix: str, own_collections: Iterable[str]) -> tuple[DatabaseRole, DatabaseRole]:
    """Return the roles of operations and of maintenance in the stack with this prefix.

    `own_collections` are those of operations. An index could delete entries by their age (TTL), so operations may not
    create any on its audit log: an administrator does.
    """
    own = CONSOLE.database_in(prefix)
    kept = tuple((own, name, _APPEND if name == APPEND_ONLY else _OWN) for name in sorted(own_collections))
    read = tuple(
        (SERVICES[service].database_in(prefix), collection, _FIND)
        for service, collections in READ_BY_OPERATIONS.items()
        for collection in collections
    )
    operations = DatabaseRole(f"{prefix}_{CONSOLE.user}", ((own, "", ("listCollections",)), *kept, *read))
    everything = tuple(role for service in _others() for role in _owner_of(service, prefix))
    included = (*everything, (operations.name, "admin"))
    return operations, DatabaseRole(f"{prefix}_{MAINTENANCE}", ((*PROBED, _FIND),), included)


def users_of(prefix: str) -> tuple[DatabaseUser, ...]:
    """Return the users of the stack with this prefix.

    Each is in the database of its service, so that several stacks can share a server.
    """
    own = CONSOLE.database_in(prefix)
    services = (DatabaseUser(s.user, s.database_in(prefix), _owner_of(s, prefix)) for s in _others())
    with_own_role = (DatabaseUser(name, own, ((f"{prefix}_{name}", "admin"),)) for name in (CONSOLE.user, MAINTENANCE))
    return (*services, *with_own_role)


def _others() -> tuple[Service, ...]:
    return tuple(service for service in SERVICES.values() if service is not CONSOLE)


def _owner_of(service: Service, prefix: str) -> tuple[tuple[str, str], ...]:
    database = service.database_in(prefix)
    return (("readWrite", database), ("dbAdmin", database))
