"""What `ordersaga doctor` says about versions, settings, slow and current operations, from answers of servers."""

import json
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from operations.doctor import broker, database_server
from operations.doctor.database_server import check_settings, check_version
from operations.doctor.slow import judge_current, judge_indexes, judge_slow, slow_groups
from shared import schema

GIB = 1024**3
STATUS: dict[str, Any] = {
    "version": "8.0.4",
    "storageEngine": {"name": "wiredTiger"},
    "connections": {"current": 30, "available": 970},
    "wiredTiger": {"cache": {"maximum bytes configured": GIB, "tracked dirty bytes in the cache": GIB // 100}},
}
PARAMETERS: dict[str, Any] = {
    "featureCompatibilityVersion": {"version": "8.0"},
    "transactionLifetimeLimitSeconds": 60,
}


@pytest.mark.parametrize(
    ("version", "outcome", "detail"),
    [
        ("4.4.29", "wrong", "4.4.29 is too old"),
        ("5.0.31", "note", "5.0.31 answers, older than what is tested"),
        ("6.0.4", "note", "6.0.4 answers, older than what is tested"),
        ("6.0.5", "ok", "6.0.5 answers"),
        ("8.0.4-rc1", "ok", "8.0.4-rc1 answers"),
    ],
)
def test_the_version_of_mongodb_is_judged(version: str, outcome: str, detail: str) -> None:
    found = check_version(version)
    assert (found.outcome, found.detail) == (outcome, detail)


@pytest.mark.parametrize(("version", "outcome"), [("6.0.27", "note"), ("7.0.15", "ok"), ("8.0.4", "ok")])
def test_a_mongodb_without_updates_is_named(version: str, outcome: str) -> None:
    assert database_server.check_support(version).outcome == outcome


@pytest.mark.parametrize(("version", "outcome"), [("3.13.7", "note"), ("4.0.5", "ok"), ("unknown", "note")])
def test_a_rabbitmq_without_updates_is_named(version: str, outcome: str) -> None:
    assert broker.check_support(version).outcome == outcome


def test_usual_settings_of_mongodb_are_in_order() -> None:
    assert {finding.outcome for finding in check_settings(STATUS, PARAMETERS)} == {"ok"}


def test_a_router_of_a_sharded_cluster_has_fewer_settings() -> None:
    status = {"version": "8.0.4", "connections": {"current": 1, "available": 9}}
    assert [finding.subject for finding in check_settings(status, {})] == ["connections"]


@pytest.mark.parametrize(
    ("code", "subjects"),
    [
        (72, ["MongoDB", "support of MongoDB", "connections"]),
        (schema.UNAUTHORIZED, ["MongoDB", "support of MongoDB", "settings of MongoDB"]),
    ],
)
async def test_a_server_without_parameters_is_checked_in_the_rest(code: int, subjects: list[str]) -> None:
    """A router of a sharded cluster has none of them; a user with too few rights is another thing."""

    class Router:
        @property
        def admin(self) -> "Router":
            return self

        async def server_info(self) -> dict[str, Any]:
            return {"version": "8.0.4"}

        async def command(self, name: str, *_: object, **__: object) -> dict[str, Any]:
            if name == "getParameter":
                raise OperationFailure("no option found to get", code)
            return {"version": "8.0.4", "connections": {"current": 1, "available": 9}}

    findings = await database_server.check_server(Router())  # type: ignore[arg-type]
    assert [finding.subject for finding in findings] == subjects


@pytest.mark.parametrize(
    ("status", "parameters", "subject", "outcome", "detail"),
    [
        ({"storageEngine": {"name": "inMemory"}}, {}, "storage engine", "wrong", "lost when it stops"),
        ({"storageEngine": {"name": "mmapv1"}}, {}, "storage engine", "wrong", "no transactions"),
        ({}, {"transactionLifetimeLimitSeconds": 5}, "transaction lifetime", "wrong", "would be ended"),
        ({}, {"transactionLifetimeLimitSeconds": 600}, "transaction lifetime", "note", "locked for so long"),
        ({"connections": {"current": 900, "available": 100}}, {}, "connections", "wrong", "900 of 1,000 are open"),
        (
            {"wiredTiger": {"cache": {"maximum bytes configured": GIB, "tracked dirty bytes in the cache": GIB // 3}}},
            {},
            "cache",
            "note",
            "33 % of it not yet on disk: writes wait",
        ),
        (
            {},
            {"featureCompatibilityVersion": {"version": "7.0"}},
            "feature compatibility",
            "note",
            "the upgrade is not finished",
        ),
    ],
)
def test_an_unsuitable_setting_of_mongodb_is_named_with_its_remedy(
    status: dict[str, Any], parameters: dict[str, Any], subject: str, outcome: str, detail: str
) -> None:
    unusual = [one for one in check_settings(STATUS | status, PARAMETERS | parameters) if one.outcome != "ok"]
    assert [(one.subject, one.outcome) for one in unusual] == [(subject, outcome)]
    assert detail in unusual[0].detail
    assert unusual[0].fix


@pytest.mark.parametrize(
    ("answer", "outcome", "detail"),
    [
        ("[1800000,0.4,50000000]\n", "ok", "consumer_timeout 1800000 ms"),
        ("[undefined,{absolute,1024},{mem_relative,1.0}]", "ok", "{absolute,1024}"),
        ("[5000,0.4,50000000]", "wrong", "consumer_timeout is 5 s"),
        ("[1800000,0.9,50000000]", "wrong", "vm_memory_high_watermark is 0.9"),
        ("[1800000,0.4,1000]", "wrong", "disk_free_limit is 1,000 bytes"),
        ("", "note", "not checked: rabbitmqctl answered ''"),
        ("[1800000,0.4]", "note", "not checked"),
        ("a, warning, of, Erlang\n[1800000,0.4,50000000]", "note", "not checked: rabbitmqctl answered 'a, warning"),
    ],
)
def test_the_limits_of_the_broker_are_judged(answer: str, outcome: str, detail: str) -> None:
    found = broker.judge_limits(answer)
    assert found.outcome == outcome
    assert detail in found.detail


# --- doctor --slow. ---


def slow_line(collection: str, milliseconds: int, plan: str = "COLLSCAN", **more: Any) -> str:
    command = {"find": collection, "filter": {"userId": "a customer"}}
    attributes = {"ns": f"shop_orders.{collection}", "command": command, "planSummary": plan, "docsExamined": 1000}
    return json.dumps({"msg": "Slow query", "attr": attributes | {"durationMillis": milliseconds} | more})


def test_slow_operations_are_grouped_without_what_they_looked_for() -> None:
    lines = [
        slow_line("orders", 150),
        slow_line("orders", 1200),
        slow_line("orders", 300, plan="IXSCAN { _id: 1 }"),
        slow_line("orders", 9000, ns="another_orders.orders"),
        json.dumps({"msg": "Connection accepted", "attr": {}}),
        "not JSON",
    ]
    first, second = judge_slow(slow_groups(lines, "shop"), len(lines))
    assert first.detail == "find on shop_orders.orders: 2 times, up to 1,200 ms, COLLSCAN, 1,000 documents read"
    assert "no index" in first.fix
    assert second.detail == "find on shop_orders.orders: once, up to 300 ms, IXSCAN, 1,000 documents read"
    assert second.fix == ""
    assert "a customer" not in str((first, second))


def test_no_slow_operation_is_in_order() -> None:
    (found,) = judge_slow([], 1024)
    assert (found.outcome, found.detail) == ("ok", "none in the last 1,024 lines of MongoDB's log")


def test_indexes_are_listed_by_use_and_unused_ones_named() -> None:
    found = judge_indexes("shop_orders", {"orders._id_": 9, "orders.a": 5, "orders.b": 0, "orders.c": 7000})
    assert found.detail == "uses since the server started: orders.c 7,000, orders.a 5; never used: orders.b"


def test_long_operations_locks_and_open_transactions_are_named() -> None:
    operations = [
        {"ns": "shop_orders.orders", "active": True, "secs_running": 7, "command": {"aggregate": "orders"}},
        {"ns": "shop_orders.orders", "active": True, "secs_running": 0, "waitingForLock": True, "op": "update"},
        {"ns": "another.orders", "active": True, "secs_running": 70, "waitingForLock": True, "op": "query"},
        {"ns": "", "active": False, "appName": "ordersaga", "transaction": {"timeOpenMicros": 23_000_000}},
        {"ns": "admin.$cmd", "active": False, "appName": "ordersaga-audit", "transaction": {"timeOpenMicros": 11e6}},
        {"ns": "", "active": False, "appName": "another", "transaction": {"timeOpenMicros": 90_000_000}},
        {"ns": "", "active": False, "transaction": {"timeOpenMicros": 90_000_000}},
        {"ns": "another.orders", "active": True, "secs_running": 90, "transaction": {"timeOpenMicros": 90_000_000}},
    ]
    assert [(one.subject, one.outcome, one.detail) for one in judge_current(operations, "shop")] == [
        ("current operations", "note", "aggregate on shop_orders.orders has run for 7 s"),
        ("locks", "note", "update on shop_orders.orders waits for a lock"),
        ("locks", "wrong", "a transaction of ordersaga is open for 23 s"),
        ("locks", "wrong", "a transaction of ordersaga-audit is open for 11 s"),
    ]
    assert {one.outcome for one in judge_current([], "shop")} == {"ok"}
