"""The table of rights in MongoDB covers the collections that the services declare."""

import pytest

from operations.schema import SCHEMA
from operations.stack.database_rights import (
    APPEND_ONLY,
    MAINTENANCE,
    READ_BY_OPERATIONS,
    USERS,
    WITHHELD,
    roles_of,
    users_of,
)
from operations.stack.database_schemas import schema_of
from shared.services import CONSOLE, SERVICES


@pytest.mark.parametrize("service", [name for name in SERVICES if name != CONSOLE.name])
def test_operations_reads_or_is_refused_every_collection(service: str) -> None:
    decided = {*READ_BY_OPERATIONS[service], *WITHHELD.get(service, ())}
    assert decided == set(schema_of(service))


def test_every_user_is_in_the_database_of_its_service() -> None:
    users = {user.name: user for user in users_of("shop")}
    assert tuple(users) == USERS
    assert users["order"].database == "shop_orders"
    assert users["order"].roles == (("readWrite", "shop_orders"), ("dbAdmin", "shop_orders"))
    assert users[MAINTENANCE].roles == (("shop_maintenance", "admin"),)


def test_operations_only_adds_to_its_audit_log_and_only_reads_the_databases_of_others() -> None:
    operations, maintenance = roles_of("shop", SCHEMA)
    rights = {(database, collection): actions for database, collection, actions in operations.privileges}
    assert rights["shop_operations", APPEND_ONLY] == ("find", "insert", "listIndexes")
    assert {actions for (database, _), actions in rights.items() if database != "shop_operations"} == {("find",)}
    assert not [role for role in maintenance.includes if role[1] == "shop_operations"]
