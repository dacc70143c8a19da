"""`ordersaga doctor`: every problem of the servers is found and named."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pymongo
import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure, ServerSelectionTimeoutError

from operations.doctor.broker import (
    CONSUMERS,
    check_bindings,
    check_broker,
    check_consumers,
    check_default_users,
    check_message_size,
    check_rights,
)
from operations.doctor.database import check_database
from operations.doctor.finding import Finding, wrong
from operations.doctor.provider import check_provider
from operations.doctor.slow import check_slow
from operations.reading.broker import QueueLevel
from operations.stack.database_schemas import schema_of
from operations.stack.mongod import find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import spawn
from operations.stack.program import Command
from shared import topology
from shared.bus.declaring import declare_topology
from shared.schema import CollectionSchema, prepare
from shared.services import SERVICES
from tests.support.eventually import eventually
from tests.support.servers import Servers
from tests.support.simulators import package, run_simulator


async def database(url: str, prefix: str = "none", services: tuple[str, ...] = ()) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in check_database(url, prefix, services)}


async def broker(url: str) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in check_broker(url, None)}


async def test_healthy_servers_have_no_findings(servers: Servers, clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection:
        await declare_topology(connection, topology.RETRY_LADDER)
    findings = await database(servers.mongodb_url) | await broker(clean_broker)
    assert {what: finding.outcome for what, finding in findings.items()} == {
        "MongoDB": "ok",
        "support of MongoDB": findings["support of MongoDB"].outcome,  # it depends on the version
        "storage engine": "ok",
        "transaction lifetime": "ok",
        "connections": "ok",
        "cache": "ok",
        "replica set": "ok",
        "replica set members": "note",
        "write concern": "ok",
        "transactions": "ok",
        "clock": "ok",
        "RabbitMQ node": "ok",
        "support of RabbitMQ": findings["support of RabbitMQ"].outcome,
        "exchanges": "ok",
        "queues": "ok",
        "consumers": "note",
        "event stream": "note",
        "former retry queues": "ok",
        "RabbitMQ alarms": "ok",
        "user guest": "note" if "guest:" in clean_broker else "ok",
        "user ordersaga": "ok",
        "bindings": "note",
        "rights on the broker": "note",
        "message size": "note",
        "limits of the broker": "note",
        "cluster": "note",
    }


async def test_slow_operations_indexes_and_locks_of_a_real_server_are_shown(
    servers: Servers, database_prefix: str
) -> None:
    name = f"{database_prefix}_orders"
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        await prepare(client[name], schema_of("order"))
        await client[name]["orders"].insert_one({"_id": "o1", "userId": "a customer"})
        await client[name]["orders"].find_one({"userId": "a customer", "$where": "sleep(300) || true"})
        findings = [finding async for finding in check_slow(servers.mongodb_url, database_prefix)]
    assert {finding.outcome for finding in findings} <= {"ok", "note"}
    by_subject = {finding.subject: finding for finding in findings}
    assert "never used: " in by_subject[f"index use of {name}"].detail
    # On a busy machine the creation of the collections may be slow, too.
    slow = [finding.detail for finding in findings if finding.subject == "slow operations"]
    assert any(detail.startswith(f"find on {name}.orders: once, up to ") for detail in slow), slow
    assert "a customer" not in str(findings)
    assert {"current operations", "locks"} <= by_subject.keys()


async def test_servers_that_do_not_answer_are_named() -> None:
    with PortClaims() as claims:
        unused = claims.claim_free()
        findings = await database(f"mongodb://127.0.0.1:{unused}/") | await broker(f"amqp://127.0.0.1:{unused}/")
    assert {what: finding.outcome for what, finding in findings.items()} == {
        "MongoDB": "wrong",
        "RabbitMQ node": "wrong",
    }
    assert "ORDERSAGA_MONGODB_URL" in findings["MongoDB"].fix
    assert "ORDERSAGA_AMQP_URL" in findings["RabbitMQ node"].fix


async def test_a_mongod_without_a_replica_set_is_reported_with_instructions(tmp_path: Path) -> None:
    with PortClaims() as claims:
        port = claims.claim_free()
        words = ("--dbpath", str(tmp_path), "--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket")
        alone = await spawn(Command((str(find_mongod()), *words), {}), tmp_path / "log", tmp_path)
        try:
            url = f"mongodb://127.0.0.1:{port}/"

            async def answers() -> bool:
                return (await database(url))["MongoDB"].outcome == "ok"

            await eventually(answers, within=60)
            findings = await database(url)
        finally:
            await alone.end(10)
    assert findings["replica set"].outcome == "wrong"
    assert "--replSet" in findings["replica set"].fix
    assert findings["transactions"].outcome == "wrong"


async def test_missing_collections_and_indexes_are_named_and_not_created(
    servers: Servers, database_prefix: str
) -> None:
    for _ in range(2):  # the first check must not change anything
        findings = await database(servers.mongodb_url, database_prefix, ("payment",))
        missing = findings[f"collection {database_prefix}_payments.payments"]
        assert missing.outcome == "wrong"
        assert (
            missing.detail == "collection: missing; index by_rare_status, by_owner, due_lookups, unpublished: missing"
        )
        assert missing.fix == "start python -m payment_service, which creates them"


async def test_collections_that_a_service_created_are_ok(servers: Servers, database_prefix: str) -> None:
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        for service in SERVICES.values():
            await prepare(client[service.database_in(database_prefix)], schema_of(service.name))
    findings = await database(servers.mongodb_url, database_prefix, tuple(SERVICES))
    of_collections = {what: finding for what, finding in findings.items() if what.startswith("collection ")}
    assert len(of_collections) == sum(len(schema_of(service)) for service in SERVICES)
    assert {finding.outcome for finding in of_collections.values()} == {"ok"}


async def test_what_a_start_cannot_fix_is_reported_with_its_command(servers: Servers, database_prefix: str) -> None:
    name = f"{database_prefix}_payments"
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        await client[name].create_collection("payments")
        await client[name]["payments"].create_index("userId", name="by_owner")
    finding = (await database(servers.mongodb_url, database_prefix, ("payment",)))[f"collection {name}.payments"]
    assert finding.outcome == "wrong"
    assert 'index by_owner: {"key": {"userId": 1}}, needed: {"key": {"ownerId": 1, "_id": 1}' in finding.detail
    assert f'getSiblingDB("{name}").getCollection("payments").dropIndex("by_owner"); then start' in finding.fix


async def test_a_document_that_a_validator_refuses_is_named(servers: Servers, database_prefix: str) -> None:
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        inventory = client[f"{database_prefix}_inventory"]
        now = datetime.now(UTC)
        product = {"kind": "goods", "supplied": 10, "version": 1, "moving": {}, "createdAt": now, "updatedAt": now}
        await inventory["products"].insert_many(
            [{**product, "_id": "whole", "quantity": 10}, {**product, "_id": "double", "quantity": 10.0}]
        )
        await prepare(inventory, schema_of("inventory"))
    findings = await database(servers.mongodb_url, database_prefix, ("inventory",))
    assert findings[f"collection {inventory.name}.products"].outcome == "ok"
    refused = {what: finding for what, finding in findings.items() if what.startswith("documents ")}
    assert list(refused) == [f"documents of {inventory.name}.products"]
    (finding,) = refused.values()
    assert finding.outcome == "wrong"
    assert 'refuses "double": writes to it fail' in finding.detail


async def test_a_search_that_takes_too_long_is_reported(
    servers: Servers, database_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All documents are valid, but validating all takes seconds on any machine.
    counted = {"$filter": {"input": {"$range": ["$first", 50_000]}, "cond": {"$gte": ["$$this", 0]}}}
    slow = {"$expr": {"$eq": [{"$size": counted}, 50_000]}}
    monkeypatch.setattr("operations.doctor.database.SEARCH_MS", 100)
    monkeypatch.setattr("operations.doctor.database.schema_of", lambda _: {"books": CollectionSchema(validator=slow)})
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        await client[f"{database_prefix}_orders"]["books"].insert_many({"first": 0} for _ in range(1000))
    findings = await database(servers.mongodb_url, database_prefix, ("order",))
    finding = findings[f"documents of {database_prefix}_orders.books"]
    assert finding.outcome == "note"
    assert "not all were checked" in finding.detail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OperationFailure("not authorized", 13), "name a user in ORDERSAGA_MONGODB_URL"),
        (ServerSelectionTimeoutError("no primary"), "slow or cannot be reached"),
        (ExecutionTimeout("operation exceeded time limit", 50), "slow or cannot be reached"),
        (AutoReconnect("connection closed"), "closed the connection"),
        (OperationFailure("corrupt", 8), "MongoDB's log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_error_is_reported_with_a_remedy(
    servers: Servers, database_prefix: str, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    async def look(*_: Any) -> None:
        raise error

    monkeypatch.setattr("shared.schema.examine", look)
    findings = await database(servers.mongodb_url, database_prefix, ("order",))
    finding = findings[f"collections of {database_prefix}_orders"]
    assert finding.outcome == "wrong"
    assert words in finding.fix


async def test_missing_exchanges_and_queues_are_named_and_not_declared(clean_broker: str) -> None:
    for _ in range(2):  # the first check must not change anything
        findings = await broker(clean_broker)
        for subject, missing in (("queues", "order.inbox"), ("exchanges", "ordersaga.inboxes")):
            assert findings[subject].outcome == "wrong"
            assert f"{missing} does not exist" in findings[subject].detail
            assert "`ordersaga topology apply`" in findings[subject].fix


@pytest.mark.parametrize(("login", "outcome"), [(None, "wrong"), ("does not answer: ACCESS_REFUSED", "ok")])
async def test_a_user_with_a_well_known_password_who_can_log_in_is_reported(
    monkeypatch: pytest.MonkeyPatch, login: str | None, outcome: str
) -> None:
    asked: list[str] = []

    async def try_login(url: str) -> str | None:
        asked.append(url)
        return login

    monkeypatch.setattr("operations.doctor.broker.amqp_missing", try_login)
    found = [finding async for finding in check_default_users("amqp://order:secret@broker:5672/ordersaga")]
    assert [(finding.subject, finding.outcome) for finding in found] == [
        ("user guest", outcome),
        ("user ordersaga", outcome),
    ]
    assert set(asked) == {
        f"amqp://{name}:{name}@broker:5672/{host}" for name in ("guest", "ordersaga") for host in ("ordersaga", "")
    }
    [guest, _] = [finding async for finding in check_default_users("amqp://guest:guest@broker/")]
    assert guest.outcome == "note"


def test_rights_that_differ_are_named() -> None:
    answers = {"list_permissions": "guest\t.*\t.*\t.*\n", "list_topic_permissions": ""}
    finding = check_rights(lambda *words: answers[words[1]], "ordersaga")
    assert finding.outcome == "wrong"
    assert finding.detail.startswith("guest has rights, and should not exist; order has no rights; ")


async def test_an_inbox_without_its_service_is_named_with_what_waits_in_it(clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection:
        await declare_topology(connection, topology.RETRY_LADDER)
        channel = await connection.channel()

        async def take(_: aio_pika.abc.AbstractIncomingMessage) -> None:
            return None

        for queue in CONSUMERS.keys() - {topology.NOTIFICATION_INBOX}:
            await (await channel.get_queue(queue)).consume(take)
        event = aio_pika.Message(b"{}", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await (await channel.get_exchange(topology.EXCHANGE)).publish(event, "order.confirmed")

        async def is_named() -> bool:
            finding = (await broker(clean_broker))["consumers"]
            return (finding.outcome, finding.detail) == ("wrong", "none for notification.inbox (1 waiting)")

        await eventually(is_named, within=60)
        finding = (await broker(clean_broker))["consumers"]
        assert finding.fix.startswith("start python -m notification_service: every service must run")
        await (await channel.get_queue(topology.NOTIFICATION_INBOX)).consume(take)

        async def is_ok() -> bool:
            return (await broker(clean_broker))["consumers"].outcome == "ok"

        await eventually(is_ok, within=60)


@pytest.mark.parametrize(
    ("waiting", "services", "outcome"),
    [
        (0, {*SERVICES}, "wrong"),
        (1, {*SERVICES}, "wrong"),
        (0, {*SERVICES} - {"notification"}, "note"),
        (1, {*SERVICES} - {"notification"}, "wrong"),
    ],
)
def test_a_service_that_is_not_meant_to_run_is_missed_once_messages_wait_for_it(
    waiting: int, services: set[str], outcome: str
) -> None:
    levels = dict.fromkeys(CONSUMERS, QueueLevel(0, 1)) | {topology.NOTIFICATION_INBOX: QueueLevel(waiting, 0)}
    assert check_consumers(levels, services).outcome == outcome


def test_a_queue_whose_consumption_is_paused_is_no_problem() -> None:
    levels = dict.fromkeys(CONSUMERS, QueueLevel(0, 1)) | {topology.PAYMENT_INBOX: QueueLevel(500, 0)}
    finding = check_consumers(levels, SERVICES, {"payment"})
    assert finding.outcome == "ok"
    assert finding.detail == f"all {len(levels)} queues have one, except those of payment (paused)"


def test_a_service_whose_breaker_is_open_runs() -> None:
    without = {topology.PAYMENT_INBOX: QueueLevel(500, 0), topology.ORDER_INBOX: QueueLevel(1, 0)}
    levels = dict.fromkeys(CONSUMERS, QueueLevel(0, 1)) | without
    finding = check_consumers(levels, SERVICES, {"order"}, {"payment"})
    assert finding.outcome == "ok"
    assert finding.detail.endswith("except those of order (paused) and payment (stopped by a breaker)")
    assert check_consumers(levels, SERVICES, {"order"}).outcome == "wrong"


def test_every_service_is_named_once_when_none_runs() -> None:
    finding = check_consumers(dict.fromkeys(CONSUMERS, QueueLevel(3, 0)), SERVICES)
    assert finding.outcome == "note"
    assert finding.detail.startswith("no service runs: none for order.inbox (3 waiting)")
    assert [finding.fix.count(f"python -m {service.package}") for service in SERVICES.values()] == [1] * len(SERVICES)


async def test_a_queue_with_other_arguments_is_named(clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection:
        channel = await connection.channel()
        await channel.declare_queue(topology.ORDER_INBOX, durable=True, arguments={"x-queue-type": "classic"})
    finding = (await broker(clean_broker))["queues"]
    assert finding.outcome == "wrong"
    assert "order.inbox differs" in finding.detail


async def test_a_retry_queue_of_an_earlier_release_is_named(clean_broker: str) -> None:
    async with await aio_pika.connect(clean_broker) as connection:
        channel = await connection.channel()
        await channel.declare_queue("ordersaga.retry.5s", durable=True, arguments={"x-queue-type": "quorum"})
    finding = (await broker(clean_broker))["former retry queues"]
    assert (finding.outcome, finding.detail) == ("note", "ordersaga.retry.5s of an earlier release")


def test_a_finding_keeps_its_names_in_json() -> None:
    assert wrong("queues", "missing", "start a service").as_json() == {
        "what": "queues",
        "outcome": "wrong",
        "detail": "missing",
        "mend": "start a service",
    }


def test_a_missing_binding_is_named() -> None:
    lines = [f"{exchange}\t{queue.name}\t{key}" for queue in topology.queues() for exchange, key in queue.bindings]
    assert check_bindings(lambda *_: "\n".join(lines), "/").outcome == "ok"
    finding = check_bindings(lambda *_: "\n".join(lines[1:]), "/")
    assert finding.outcome == "wrong"
    assert "ordersaga -> order.inbox (stock.reserved)" in finding.detail


@pytest.mark.parametrize(
    ("answer", "outcome"), [("{ok,1048576}", "ok"), ("{ok,134217728}", "wrong"), ("undefined", "wrong")]
)
def test_a_broker_that_takes_larger_messages_than_a_service_handles_is_named(answer: str, outcome: str) -> None:
    assert check_message_size(lambda *_: answer).outcome == outcome


async def test_a_provider_that_answers_is_reported_with_its_offer() -> None:
    async with run_simulator() as simulator:
        await simulator.packages([package("203.0.113", 3), package("198.51.100", 2)])
        by_state = await check_provider(simulator.url, {})
        login = {"ORDERSAGA_SMARTVPS_USERNAME": simulator.username, "ORDERSAGA_SMARTVPS_PASSWORD": simulator.password}
        by_environment = await check_provider(None, {"ORDERSAGA_SMARTVPS_URL": simulator.url, **login})
    assert (by_state.outcome, by_state.detail) == ("ok", "2 active packages, 5 free addresses")
    assert by_environment == by_state


async def test_a_provider_that_refuses_the_login_is_reported() -> None:
    async with run_simulator() as simulator:
        given = {"ORDERSAGA_SMARTVPS_URL": simulator.url, "ORDERSAGA_SMARTVPS_PASSWORD": "another"}
        finding = await check_provider(simulator.url, given)
    assert (finding.outcome, "401" in finding.detail) == ("wrong", True)
    assert "ORDERSAGA_SMARTVPS_USERNAME" in finding.fix


async def test_a_stack_without_a_provider_gets_a_note() -> None:
    finding = await check_provider(None, {})
    assert finding.outcome == "note"
    assert "every order of a server fails" in finding.detail
