"""The table of rights in MongoDB covers the collections that the services declare."""

import pytest

from operations.dead_letters.schema import BODIES
from operations.doctor.database_users import compare_rights, flattened
from operations.stack.database_rights import (
    APPEND_ONLY,
    BACKUP,
    MAINTENANCE,
    MONITORING,
    NOT_BACKED_UP,
    OPLOG,
    READ_BY_OPERATIONS,
    THE_SERVER,
    USERS,
    WITHHELD,
    rights_of,
    users_of,
)
from operations.stack.database_schemas import all_schemas, schema_of
from shared.services import CONSOLE, SERVICES, Service

COLLECTIONS = {name: declared.keys() for name, declared in all_schemas().items()}


@pytest.mark.parametrize("service", [name for name in SERVICES if name != CONSOLE.name])
def test_operations_reads_or_is_refused_every_collection(service: str) -> None:
    decided = {*READ_BY_OPERATIONS[service], *WITHHELD.get(service, ())}
    assert decided == set(schema_of(service))


def test_every_user_is_in_the_database_of_its_service() -> None:
    users = {user.name: user for user in users_of("shop")}
    assert tuple(users) == USERS
    assert users["order"].database == "shop_orders"
    assert users["order"].roles == (("shop_order", "admin"),)
    assert users[MAINTENANCE].roles == (("shop_maintenance", "admin"),)


def rights(user: str) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for database, collection, action in rights_of(user, "shop", COLLECTIONS):
        found.setdefault((database, collection), set()).add(action)
    return found


@pytest.mark.parametrize("user", [user for user in USERS if user != MONITORING])
def test_everybody_only_adds_to_the_audit_logs(user: str) -> None:
    of_logs = {place: actions for place, actions in rights(user).items() if place[1] == APPEND_ONLY}
    assert of_logs
    for actions in of_logs.values():
        assert actions <= {"find", "insert", "listIndexes"}


@pytest.mark.parametrize("service", [service for service in SERVICES.values() if service is not CONSOLE])
def test_a_service_has_rights_in_its_own_database_alone_and_drops_nothing(service: Service) -> None:
    found = rights(service.user)
    assert {database for database, _ in found} == {service.database_in("shop")}
    assert not {"dropCollection", "dropDatabase", "renameCollectionSameDB"} & set().union(*found.values())


def test_operations_reads_the_databases_of_others_and_writes_only_approved_repairs() -> None:
    elsewhere = {place: actions for place, actions in rights("operations").items() if place[0] != "shop_operations"}
    written = {place: actions - {"find"} for place, actions in elsewhere.items() if actions != {"find"}}
    assert written == {("shop_payments", "accounts"): {"update"}, ("shop_payments", "entries"): {"insert"}}


def test_maintenance_has_the_rights_of_all_services() -> None:
    others = [user for user in USERS if user != MONITORING]
    assert {right for user in others for right in rights_of(user, "shop", COLLECTIONS)} == rights_of(
        MAINTENANCE, "shop", COLLECTIONS
    )


def test_monitoring_reads_figures_and_no_record() -> None:
    found = rights(MONITORING)
    assert found.pop((THE_SERVER, "")) == {"serverStatus", "replSetGetStatus", "replSetGetConfig", "getCmdLineOpts"}
    assert found.pop(OPLOG) == {"collStats"}
    databases = {OPLOG[0], *(service.database_in("shop") for service in SERVICES.values())}
    assert found == {(database, ""): {"dbStats"} for database in databases}


def test_a_user_with_other_rights_than_it_should_have_is_described() -> None:
    wanted = rights_of("order", "shop", COLLECTIONS)
    more = {("shop_orders", "actions", "remove"), ("every database", "", "find")}
    assert compare_rights(wanted, wanted) is None
    assert compare_rights(wanted, wanted | more) == (
        "may, and should not, find in every database, remove in shop_orders.actions"
    )
    assert compare_rights(wanted, wanted - {("shop_orders", "orders", "find")}) == "may not find in shop_orders.orders"
    assert compare_rights(wanted, ()) == (
        "may not listCollections in shop_orders, find in shop_orders.actions, insert in shop_orders.actions "
        f"and {len(wanted) - 3} more"
    )


def test_privileges_of_mongodb_are_read_as_single_actions() -> None:
    assert flattened(
        [
            {"resource": {"db": "shop_orders", "collection": "orders"}, "actions": ["find", "insert"]},
            {"resource": {"db": "", "collection": ""}, "actions": ["find"]},
            {"resource": {"cluster": True}, "actions": ["shutdown"]},
            {"resource": {"anyResource": True}, "actions": ["anyAction"]},
        ]
    ) == {
        ("shop_orders", "orders", "find"),
        ("shop_orders", "orders", "insert"),
        ("every database", "", "find"),
        ("the server", "", "shutdown"),
        ("everything", "", "anyAction"),
    }


def test_backup_reads_everything_that_a_backup_has_and_writes_nothing() -> None:
    found = rights(BACKUP)
    assert set().union(*found.values()) == {"find", "listIndexes", "listCollections"}
    readable = {place for place, actions in found.items() if "find" in actions}
    declared = {
        (service.database_in("shop"), collection)
        for name, service in SERVICES.items()
        for collection in COLLECTIONS[name] - set(NOT_BACKED_UP.get(name, ()))
    }
    assert readable == declared


def test_operations_keeps_the_big_bodies_of_dead_letters() -> None:
    assert {"find", "insert", "remove"} <= rights("operations")["shop_operations", BODIES]
