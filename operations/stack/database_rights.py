"""Who may do what in MongoDB: a user for each service with the least rights, as one table. Pure.

From it derive the users that `ordersaga up` and `ordersaga database prepare` create, and what `ordersaga doctor`
expects of them. docs/database.md shows the table.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING, SERVICES

MAINTENANCE = "maintenance"
"""The user for the commands of the machine's owner. No process of the stack knows its password."""

BACKUP = "backup"
"""The user for `ordersaga backup`: it reads everything that a backup has, and writes nothing."""

MONITORING = "monitoring"
"""The user of an exporter of metrics: it reads figures about the server, and no record."""

USERS = (*(service.user for service in SERVICES.values()), MAINTENANCE, BACKUP, MONITORING)

READ_BY_OPERATIONS: Mapping[str, tuple[str, ...]] = {
    ORDER.name: ("orders", "pauses", "actions"),
    INVENTORY.name: ("products", "reservations", "hold_lists", "slot_rules", "pauses", "actions"),
    PAYMENT.name: (
        "payments",
        "accounts",
        "entries",
        "fund_payments",
        "bank_transfers",
        "gateway_charges",
        "stripe_intents",
        "pauses",
        "actions",
    ),
    PROVISIONING.name: ("jobs", "locks", "addresses", "packages", "pauses", "actions"),
    NOTIFICATION.name: ("deliveries", "pauses", "actions"),
}
"""The collections of the other services that operations reads, by the service's name."""

CORRECTED_BY_OPERATIONS: Mapping[tuple[str, str], str] = {
    (PAYMENT.name, "accounts"): "update",
    (PAYMENT.name, "entries"): "insert",
}
"""The only writes of operations to another service: a repair of accounts that a second person approved."""

WITHHELD: Mapping[str, tuple[str, ...]] = {
    PAYMENT.name: ("idempotency", "transaction_sessions"),
    NOTIFICATION.name: ("endpoints",),
}
"""The collections that operations does not need: answers to clients, sessions of transactions, secrets of webhooks."""

APPEND_ONLY = "actions"
"""The audit log in each database: entries are added and read, never changed or deleted."""

TOTALS = "archived"
"""The running totals of archived orders in the database of operations, which only the archive adds to."""

UNFINISHED_RESTORE = "unfinished_restore"
"""The collection that exists in each database while a restore is not finished; `shared.unfinished_restore`."""

NOT_BACKED_UP: Mapping[str, tuple[str, ...]] = {
    PAYMENT.name: ("transaction_sessions",),
    CONSOLE.name: ("sessions", "sign_in_links"),
}
"""The collections without which a stack is complete: sessions of a server that is gone, and people's sign-ins, which
must not become valid again."""

PROBED = ("ordersaga_doctor", "nothing")
"""The database and the collection that `ordersaga doctor` reads in a transaction; neither exists."""

_FIND = ("find",)
_APPEND = ("find", "insert", "listIndexes")
_PREPARE = ("find", "createCollection", "listIndexes")
_COPY = ("find", "listIndexes")
_ADD_UP = ("find", "insert", "update")
_MARK = ("createCollection", "listIndexes", "dropCollection")
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


THE_SERVER = "the server"
"""In place of a database, for actions on no database."""

_READ_SERVER = (
    "replSetGetConfig",
    "replSetGetStatus",
    "getDefaultRWConcern",
    "serverStatus",
    "getParameter",
    "getLog",
    "inprog",
)
"""What `ordersaga doctor` reads of the server; nothing there can be changed with them."""
_MEASURE_SERVER = ("serverStatus", "replSetGetStatus", "replSetGetConfig", "getCmdLineOpts")
"""What an exporter reads of the server: less than the role `clusterMonitor` of MongoDB has."""
OPLOG = ("local", "oplog.rs")
"""The collection whose size an exporter reads, without which it gets no diagnostic data at all."""
_READ_INDEX_USE = ("indexStats",)
"""What `ordersaga doctor --slow` reads of each database besides."""

Privilege = tuple[str, str, tuple[str, ...]]
"""The database, the collection (empty for all) and the actions."""
Right = tuple[str, str, str]
"""The database, the collection (empty for all) and one action."""


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
    privileges: tuple[Privilege, ...]
    includes: tuple[tuple[str, str], ...] = ()

    def as_documents(self) -> dict[str, list[dict[str, Any]]]:
        """Return `privileges` and `roles` in the form of MongoDB's command `createRole`."""
        return {
            "privileges": [
                {"resource": _resource(database, collection), "actions": list(actions)}
                for database, collection, actions in self.privileges
            ],
            "roles": role_documents(self.includes),
        }


def _resource(database: str, collection: str) -> dict[str, Any]:
    return {"cluster": True} if database == THE_SERVER else {"db": database, "collection": collection}


def role_documents(roles: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return roles in the form that MongoDB's commands take."""
    return [{"role": role, "db": database} for role, database in roles]


def roles_of(prefix: str, collections: Mapping[str, Iterable[str]]) -> tuple[DatabaseRole, ...]:
    """Return the roles of the stack with this prefix: of each service, of maintenance, which includes them, of others.

    `collections` are those of each service, by its name. An index could delete entries by their age (TTL), so no
    service may create any on its audit log: an administrator does.
    """
    read = tuple(
        (SERVICES[service].database_in(prefix), collection, (*_FIND, *_correction(service, collection)))
        for service, readable in READ_BY_OPERATIONS.items()
        for collection in readable
    )
    of_services = tuple(
        DatabaseRole(
            role_of(service.user, prefix),
            (*_own(service.database_in(prefix), collections[name]), *(read if service is CONSOLE else ())),
        )
        for name, service in SERVICES.items()
    )
    included = tuple((role.name, "admin") for role in of_services)
    own = ((*PROBED, _FIND), (CONSOLE.database_in(prefix), TOTALS, _ADD_UP), (THE_SERVER, "", _READ_SERVER))
    use = tuple((service.database_in(prefix), "", _READ_INDEX_USE) for service in SERVICES.values())
    marks = tuple((service.database_in(prefix), UNFINISHED_RESTORE, _MARK) for service in SERVICES.values())
    maintenance = DatabaseRole(role_of(MAINTENANCE, prefix), (*own, *use, *marks), included)
    backup = DatabaseRole(role_of(BACKUP, prefix), tuple(_copied(prefix, collections)))
    return (*of_services, maintenance, backup, DatabaseRole(role_of(MONITORING, prefix), tuple(_measured(prefix))))


def _measured(prefix: str) -> Iterator[Privilege]:
    """Yield the rights to read figures of the server, of the oplog and of each database."""
    yield THE_SERVER, "", _MEASURE_SERVER
    yield *OPLOG, ("collStats",)
    for database in (OPLOG[0], *(service.database_in(prefix) for service in SERVICES.values())):
        yield database, "", ("dbStats",)


def _copied(prefix: str, collections: Mapping[str, Iterable[str]]) -> Iterator[Privilege]:
    """Yield the rights to copy every collection that a backup has."""
    for name, service in SERVICES.items():
        database = service.database_in(prefix)
        yield database, "", ("listCollections",)
        for collection in sorted(set(collections[name]) - set(NOT_BACKED_UP.get(name, ()))):
            yield database, collection, _COPY


def _correction(service: str, collection: str) -> tuple[str, ...]:
    action = CORRECTED_BY_OPERATIONS.get((service, collection))
    return (action,) if action else ()


def _own(database: str, collections: Iterable[str]) -> tuple[Privilege, ...]:
    limited = {APPEND_ONLY: _APPEND, TOTALS: _PREPARE}
    kept = ((database, name, limited.get(name, _OWN)) for name in sorted(collections))
    return ((database, "", ("listCollections",)), *kept)


def role_of(user: str, prefix: str) -> str:
    """Return the name of a user's role in `admin`."""
    return f"{prefix}_{user}"


def users_of(prefix: str) -> tuple[DatabaseUser, ...]:
    """Return the users of the stack with this prefix.

    Each is in the database of its service, so that several stacks can share a server.
    """
    databases = {service.user: service.database_in(prefix) for service in SERVICES.values()}
    databases |= dict.fromkeys((MAINTENANCE, BACKUP, MONITORING), CONSOLE.database_in(prefix))
    return tuple(DatabaseUser(name, databases[name], ((role_of(name, prefix), "admin"),)) for name in USERS)


def rights_of(user: str, prefix: str, collections: Mapping[str, Iterable[str]]) -> frozenset[Right]:
    """Return everything that a user may do: single actions on single collections."""
    roles = {role.name: role for role in roles_of(prefix, collections)}
    role = roles[role_of(user, prefix)]
    parts = (role, *(roles[name] for name, _ in role.includes))
    return frozenset(
        (database, collection, action)
        for part in parts
        for database, collection, actions in part.privileges
        for action in actions
    )
