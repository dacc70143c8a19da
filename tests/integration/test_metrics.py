"""The metrics that processes really export: as documented, and those of alerts move when they should."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from pymongo import AsyncMongoClient
from yarl import URL

from operations.audit.report import Report, Violation
from operations.audit.runs import NOT_DONE, AuditRuns
from operations.dead_letters.records import LetterRecords
from operations.metrics import Observer
from operations.notifications.records import NotificationRecords
from operations.notifications.rules import Rule
from operations.notifications.schema import NOTIFICATIONS
from operations.stack.ports import PortClaims
from order_service.order import Status
from order_service.orders import NewRecord, Orders
from payment_service.ledger.ledger import references
from payment_service.ledger.transaction_errors import ContentionError
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import UnitOfWork
from provisioning_service import lifecycle
from provisioning_service.jobs import Jobs
from provisioning_service.packages import Packages
from provisioning_service.provider import Package
from shared.access.permissions import Role
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.clock import utc_now
from shared.contracts import Message, ProvisionServer, RefundPayment, StockReserved
from shared.database import Document
from shared.errors import BusUnavailableError
from shared.services import CONSOLE, INVENTORY, SERVICES
from shared.topology import DEAD_LETTERS, INVENTORY_INBOX, ORDER_INBOX, PAYMENT_INBOX
from tests.support.access import KEYS
from tests.support.builders import an_order, connected, new_id
from tests.support.buses import SHORT_LADDER
from tests.support.consoles import a_letter
from tests.support.eventually import eventually
from tests.support.monitoring import OF_SERVERS, ROOT, Samples, alert_rules, names_in, samples_of, scrape, value
from tests.support.processes import Process, Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.proxy import Proxy
from tests.support.simulators import package, run_simulator

SECTIONS = {name: f"{name.capitalize()} service" for name in SERVICES} | {CONSOLE.name: "Operations process"}
SEEN_TO_MOVE: dict[str, set[str]] = {
    "test_webhooks.py": {"webhook_endpoints_disabled_total"},
    "test_webhook_dispatcher.py": {"webhook_oldest_overdue_seconds"},
    "test_pause_watch.py": {"ordersaga_consumer_paused"},
    "test_bus_consumer.py": {"ordersaga_consumer_breaker_open"},
    "test_intake.py": {"order_intake_refused_total"},
}
"""The metrics that each test below sees move, by test name; those of other files by the file's."""


def moves(*names: str) -> Callable[[Any], Any]:
    """Record that a test sees these metrics move."""

    def noted(test: Any) -> Any:
        SEEN_TO_MOVE[test.__name__] = set(names)
        return test

    return noted


# --- Read by the operations process. ---


@dataclass
class Watched:
    """A stack with records and queues only, and its observer."""

    mongo: AsyncMongoClient[Document]
    prefix: str
    observer: Observer
    bus: RabbitBus

    def database(self, name: str) -> Any:
        return self.mongo[f"{self.prefix}_{name}"]

    async def observe(self) -> Samples:
        await self.observer.observe()
        return samples_of(generate_latest().decode())


@pytest.fixture
async def watched(mongodb_url: str, bare_broker: str, emptied_prefix: str) -> AsyncIterator[Watched]:
    bus = RabbitBus(bare_broker)
    await bus.start(None)
    async with connected(mongodb_url, "unused") as database:
        observer = Observer(database.client, emptied_prefix, bare_broker, audit_every=timedelta(hours=1))
        try:
            yield Watched(database.client, emptied_prefix, observer, bus)
        finally:
            await observer.close()
            await bus.close()


@moves(
    "ordersaga_orders_past_deadline",
    "ordersaga_open_order_oldest_seconds",
    "ordersaga_open_compensation_oldest_seconds",
    "ordersaga_orders_not_captured",
)
async def test_stalled_orders_are_observed(watched: Watched) -> None:
    orders = Orders(watched.database("orders")["orders"])
    now = utc_now()
    hour_ago = now - timedelta(hours=1)
    standing = {"updated_at": hour_ago, "created_at": hour_ago}
    await orders.insert([NewRecord(an_order(now=now))])
    before = await watched.observe()
    assert value(before, "ordersaga_orders_past_deadline") == value(before, "ordersaga_orders_not_captured") == 0
    assert value(before, "ordersaga_open_order_oldest_seconds", status="PROVISIONING") == 0

    late = an_order(now=hour_ago, deadline=now - timedelta(minutes=1))
    held = an_order(now=hour_ago, status=Status.FAILED)
    given_up = an_order(status=Status.CANCELLED, **standing)
    done = an_order(status=Status.CANCELLED, settled=True, **standing)
    at_work = an_order(status=Status.PROVISIONING, **standing)
    authorized = {"status": Status.FAILED, "payment_status": "AUTHORIZED"}
    not_captured = [
        an_order(**authorized, fulfilment="goods"),
        an_order(**authorized, fulfilment="vps", provisioning_status="COMPLETED"),
    ]
    others = [
        an_order(**authorized, fulfilment="vps", provisioning_status="FAILED"),
        an_order(**authorized, fulfilment="goods", compensating=True),
    ]
    placed = (late, held, given_up, done, at_work, *not_captured, *others)
    await orders.insert([NewRecord(order) for order in placed])
    after = await watched.observe()
    assert value(after, "ordersaga_orders_past_deadline") == 1
    assert value(after, "ordersaga_orders_not_captured") == len(not_captured)
    assert value(after, "ordersaga_open_orders", status="PENDING") == 2
    assert value(after, "ordersaga_open_order_oldest_seconds", status="PROVISIONING") == pytest.approx(3600, abs=120)
    assert value(after, "ordersaga_open_compensations") == 2
    assert value(after, "ordersaga_open_compensation_oldest_seconds") == pytest.approx(3600, abs=120)


@moves("ordersaga_retries_sent_total", "ordersaga_retries_returned_total")
async def test_messages_to_and_from_a_retry_level_are_counted(clean_broker: str) -> None:
    def counted() -> list[float]:
        samples = samples_of(generate_latest().decode())
        names = ("ordersaga_retries_sent_total", "ordersaga_retries_returned_total")
        return [value(samples, name, level=level.queue_of(PAYMENT_INBOX)) for name in names for level in SHORT_LADDER]

    failures, handled = iter([ValueError("first"), ValueError("second")]), asyncio.Event()

    async def fail_twice(_messages: Sequence[RefundPayment]) -> Sequence[Message]:
        for failure in failures:
            raise failure
        handled.set()
        return ()

    bus = RabbitBus(clean_broker, ladder=SHORT_LADDER)
    await bus.start(PAYMENT_INBOX)
    consumer = Consumer(bus, PAYMENT_INBOX, {RefundPayment: fail_twice}, ladder=SHORT_LADDER)
    before = counted()
    running = asyncio.create_task(consumer.run())
    await Publisher(bus).send([RefundPayment(order_id="o1")])
    async with asyncio.timeout(60):
        await handled.wait()
    await consumer.stop()
    await running
    await bus.close()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 0, 1, 1, 0]


@moves("ordersaga_records")
async def test_records_are_counted(watched: Watched) -> None:
    before = await watched.observe()
    await watched.database("inventory")["reservations"].insert_many([{"_id": new_id()} for _ in range(3)])
    await Orders(watched.database("orders")["orders"]).insert([NewRecord(an_order())])
    await LetterRecords(watched.database("operations")).record([a_letter(new_id())], utc_now())
    after = await watched.observe()
    grown = {
        collection: value(after, "ordersaga_records", collection=collection)
        - value(before, "ordersaga_records", collection=collection)
        for collection in ("orders", "reservations", "dead_letters", "payments", "jobs")
    }
    assert {name: value(before, "ordersaga_records", collection=name) for name in grown} == dict.fromkeys(grown, 0)
    assert grown == {"orders": 1, "reservations": 3, "dead_letters": 1, "payments": 0, "jobs": 0}
    assert value(after, "ordersaga_dead_letters", status="dead") == 1


@moves("ordersaga_audit_timestamp_seconds", "ordersaga_audit_violations", "ordersaga_audit_interval_seconds")
async def test_the_last_audit_that_judged_the_books_is_observed(watched: Watched) -> None:
    runs = AuditRuns(watched.database("operations"))
    before = await watched.observe()
    assert value(before, "ordersaga_audit_timestamp_seconds") == pytest.approx(utc_now().timestamp(), abs=600)
    run = await runs.begin("anna")
    assert run is not None
    report = Report(violations=[Violation(1, "counts", "product", "p1", "", "")], unlisted=2)
    await runs.end(run, report, seconds=700, judged=1)
    failing = await runs.begin("anna")
    assert failing is not None
    await runs.give_up(failing, NOT_DONE, "a server was away")
    after = await watched.observe()
    assert value(after, "ordersaga_audit_violations") == 3
    assert value(after, "ordersaga_audit_interval_seconds") == 7000
    last = await runs.last(answered=True)
    assert last is not None
    assert value(after, "ordersaga_audit_timestamp_seconds") == last["endedAt"].timestamp()


@moves("ordersaga_notifications_failing")
async def test_notifications_that_are_not_sent_are_observed(watched: Watched) -> None:
    records = NotificationRecords(watched.database("operations"), lambda: utc_now() - timedelta(hours=1))
    await records.open_test(Rule("r", "slack"))
    assert value(await watched.observe(), "ordersaga_notifications_failing") == 0
    await watched.database("operations")[NOTIFICATIONS].update_many({}, {"$unset": {"test": ""}})
    assert value(await watched.observe(), "ordersaga_notifications_failing") == 1


@moves("ordersaga_queue_messages", "ordersaga_queue_consumers", "ordersaga_queue_oldest_message_seconds")
async def test_queues_are_observed_with_messages_and_consumers(clean_broker: str, watched: Watched) -> None:
    empty = await watched.observe()
    assert value(empty, "ordersaga_queue_messages") == value(empty, "ordersaga_queue_consumers") == 0
    await Publisher(watched.bus).send([StockReserved(order_id=new_id(), fulfilment="goods")])
    waiting = await watched.observe()
    assert value(waiting, "ordersaga_queue_messages", queue=ORDER_INBOX) == 1
    assert value(waiting, "ordersaga_queue_messages") == 1
    later = await watched.observe()
    assert value(later, "ordersaga_queue_oldest_message_seconds", queue=ORDER_INBOX) > 0
    assert value(later, "ordersaga_queue_oldest_message_seconds", queue=DEAD_LETTERS) == 0
    consumer = RabbitBus(clean_broker)
    await consumer.start(ORDER_INBOX)
    taken = await watched.observe()
    assert value(taken, "ordersaga_queue_consumers", queue=ORDER_INBOX) == 1
    assert value(taken, "ordersaga_queue_messages") == 0
    await consumer.close()


@moves("ordersaga_lock_wait_oldest_seconds", "ordersaga_package_low")
async def test_packages_and_their_queues_are_observed(watched: Watched) -> None:
    provisioning = watched.database("provisioning")
    packages, now = Packages(provisioning["packages"], 5), utc_now()
    await packages.record("103.1.2", Package("7", "103.1.2", "active", 9, ()), now)
    before = await watched.observe()
    assert value(before, "ordersaga_package_low", package="103.1.2") == 0
    assert value(before, "ordersaga_lock_wait_oldest_seconds", package="103.1.2") == 0

    await packages.record("103.1.2", Package("7", "103.1.2", "active", 3, ()), now)
    wish = ProvisionServer(order_id=new_id(), user_id="u1", package="103.1.2", ram=2048)
    await Jobs(provisioning["jobs"]).insert([lifecycle.requested(wish, now - timedelta(minutes=1), 1)])
    after = await watched.observe()
    assert value(after, "ordersaga_package_low", package="103.1.2") == 1
    assert value(after, "ordersaga_package_free_addresses", package="103.1.2") == 3
    assert value(after, "ordersaga_lock_wait_oldest_seconds", package="103.1.2") == pytest.approx(60, abs=50)


@moves("ordersaga_observed_timestamp_seconds")
async def test_an_unavailable_source_keeps_its_last_time(watched: Watched) -> None:
    first = await watched.observe()
    away = Observer(watched.mongo, watched.prefix, "amqp://guest:guest@127.0.0.1:1/")
    await away.observe()
    second = samples_of(generate_latest().decode())
    for source, moved in (("queues", False), ("orders", True)):
        times = [value(samples, "ordersaga_observed_timestamp_seconds", source=source) for samples in (first, second)]
        assert (times[1] > times[0]) is moved, source
    failures = [value(samples, "ordersaga_observation_failures_total", source="queues") for samples in (first, second)]
    assert failures[1] == failures[0] + 1


# --- Counted by the services. ---


@moves("transaction_failures_total", "transaction_duration_seconds_count")
async def test_a_transaction_that_is_given_up_is_a_failure(mongodb_url: str, database_prefix: str) -> None:
    operation = new_id()
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        transactions = Transactions(database)
        entered, free = asyncio.Event(), asyncio.Event()
        touches = references(["retainer:r1"])

        async def slowly(_unit: UnitOfWork) -> None:
            entered.set()
            await free.wait()

        first = asyncio.create_task(transactions.run(operation, slowly, touches))
        await entered.wait()
        before = samples_of(generate_latest().decode())
        with pytest.raises(ContentionError):
            await transactions.run(operation, slowly, touches, within=0.01)
        free.set()
        await first
    after = samples_of(generate_latest().decode())
    # The series exists at 0 before the first failure: otherwise that would not be an increase.
    assert ("transaction_failures_total", frozenset({("operation", operation), ("reason", "contention")})) in before
    assert value(before, "transaction_failures_total", operation=operation) == 0
    assert value(after, "transaction_failures_total", operation=operation, reason="contention") == 1
    assert value(after, "transaction_duration_seconds_count", operation=operation) == 2
    assert value(after, "transaction_commits_total", operation=operation) == 1
    assert value(after, "transaction_aborts_total", operation=operation) == 0


@moves("ordersaga_publish_failures_total")
async def test_a_batch_that_is_not_published_is_a_failure() -> None:
    def failures() -> float:
        return value(samples_of(generate_latest().decode()), "ordersaga_publish_failures_total")

    before = failures()
    not_connected = Publisher(RabbitBus("amqp://guest:guest@127.0.0.1:9/"))
    with pytest.raises(BusUnavailableError):
        await not_connected.send([StockReserved(order_id=new_id(), fulfilment="goods")])
    assert failures() == before + 1


@moves(
    "up",
    "orders_ended_total",
    "saga_duration_seconds_bucket",
    "saga_duration_seconds_count",
    "ordersaga_messages_dead_lettered_total",
    "ordersaga_messages_handled_total",
    "ordersaga_consumer_up",
    "ordersaga_ready",
    "http_requests_total",
)
async def test_a_running_stack_moves_what_prometheus_watches(
    mongodb_url: str, clean_broker: str, database_prefix: str, tmp_path: Path
) -> None:
    async with (
        run_simulator() as simulator,
        contextlib.AsyncExitStack() as way_to_the_broker,
        run_stack(mongodb_url, clean_broker, database_prefix, **SHORT_DELAYS, **simulator.settings) as stack,
    ):
        await simulator.packages([package("103.1.2", 0)])
        proxy = await way_to_the_broker.enter_async_context(Proxy(URL(clean_broker)).open())
        *_, inventory = await asyncio.gather(
            stack.start(*(name for name in SERVICES if name != INVENTORY.name)),
            stack.start(INVENTORY.name, amqp_url=proxy.url),
        )
        await _every_process_exports_what_its_table_says(stack)
        async with run_prometheus(stack, tmp_path) as prometheus:
            await _a_stack_that_is_well_calls_nobody(prometheus)
            await _ends_are_counted_by_reason(stack)
            await _a_dead_letter_is_counted(stack, clean_broker)
            await _a_consumer_that_loses_the_broker_says_so(stack, inventory[0], way_to_the_broker)
            await _a_process_that_is_gone_is_down(stack, prometheus)


async def _every_process_exports_what_its_table_says(stack: Stack) -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    documented = {
        title: set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
        for title, _, text in (part.partition("\n") for part in page.split("\n### ")[1:])
    }
    for service, title in SECTIONS.items():
        text = (await stack.client.get(f"{stack.url(service)}/metrics")).text
        exported = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
        own = {name for name in exported if not name.startswith(("process_", "python_"))}
        expected = documented["Every process"] | documented[title]
        assert own == {name for name in expected if not name.startswith("grpc_")}, service


async def _a_stack_that_is_well_calls_nobody(prometheus: "Prometheus") -> None:
    async def all_answer() -> bool:
        return [float(result["value"][1]) for result in await prometheus.query("up")] == [1.0] * len(SECTIONS)

    await eventually(all_answer, 60, "Prometheus to have scraped all processes")

    async def all_silent() -> bool:
        rules = {(rule["name"], rule["health"], rule["state"]) for rule in await prometheus.rules()}
        return rules == {(rule["alert"], "ok", "inactive") for rule in alert_rules()}

    # An alert may be pending until all have been scraped.
    await eventually(all_silent, 60, "the rules to be evaluated, and all of them silent")


async def _ends_are_counted_by_reason(stack: Stack) -> None:
    await stack.stock("p1", 2)
    response = await stack.client.put(
        f"{stack.url('inventory')}/products/v1",
        json={"kind": "vps", "package": "103.1.2", "packageId": "id-103.1.2", "ram": 2048},
    )
    assert response.status_code in (200, 201), response.text
    before = await scrape(stack.client, stack.url("order"))
    for changes in (
        {},
        {"payment": {"token": "tok_declined"}},
        {"items": [{"productId": "p1", "quantity": 9, "price": 10}], "totalAmount": 90},
        {"items": [{"productId": "p2", "quantity": 1, "price": 10}]},
        {"items": [{"productId": "v1", "quantity": 1, "price": 10}]},
    ):
        await stack.place(**changes)
    expected = {"none": 1, "payment_refused": 1, "stock_refused": 2, "provisioning_failed": 1}

    async def counted() -> bool:
        after = await scrape(stack.client, stack.url("order"))
        name = "orders_ended_total"
        found = {r: value(after, name, reason=r) - value(before, name, reason=r) for r in expected}
        return found == expected and value(after, "saga_compensated_total") >= 1

    await eventually(counted, 60, "the ends to be counted by reason")
    after = await scrape(stack.client, stack.url("order"))
    for name, labels in (
        ("ordersaga_messages_handled_total", {"queue": ORDER_INBOX}),
        ("http_requests_total", {"route": "/orders", "status": "202"}),
    ):
        assert value(after, name, **labels) >= value(before, name, **labels) + 5, name
    for name, labels in (("count", {}), ("bucket", {"le": "5.0"})):
        assert value(after, f"saga_duration_seconds_{name}", status="CONFIRMED", **labels) >= 1, name
    refused = await scrape(stack.client, stack.url("inventory"))
    assert value(refused, "inventory_refusals_total", reason="insufficient_stock") == 1
    assert value(refused, "inventory_refusals_total", reason="unknown_product") == 1
    assert value(refused, "inventory_refusals_total", reason="other") == 0


async def _a_dead_letter_is_counted(stack: Stack, amqp_url: str) -> None:
    labels = {"queue": ORDER_INBOX, "type": "stock.reserved"}
    name = "ordersaga_messages_dead_lettered_total"
    before = await scrape(stack.client, stack.url("order"))
    # The series exists at 0 before the first dead letter: otherwise that would not be an increase.
    assert before[name, frozenset(labels.items())] == 0
    bus = RabbitBus(amqp_url)
    await bus.start(None)
    await Publisher(bus).send([StockReserved(order_id=new_id(), fulfilment="goods")])
    await bus.close()

    async def counted() -> bool:
        return value(await scrape(stack.client, stack.url("order")), name, **labels) == 1

    await eventually(counted, 60, "the dead letter to be counted")


async def _a_consumer_that_loses_the_broker_says_so(
    stack: Stack, inventory: Process, way_to_the_broker: contextlib.AsyncExitStack
) -> None:
    async def up(expected: float) -> None:
        async def says() -> bool:
            samples = await scrape(stack.client, inventory.url)
            ready = {value(samples, "ordersaga_ready", dependency=name) for name in ("rabbitmq", "consumer")}
            taken = samples["ordersaga_consumer_up", frozenset({("queue", INVENTORY_INBOX)})]
            return ready == {taken} == {expected}

        await eventually(says, 60, f"the consumer to say {expected}")

    await up(1)
    await way_to_the_broker.aclose()
    await up(0)


async def _a_process_that_is_gone_is_down(stack: Stack, prometheus: "Prometheus") -> None:
    await stack.kill(stack.processes("provisioning")[0])

    async def noticed() -> bool:
        down = await prometheus.query("up == 0")
        return [result["metric"]["service"] for result in down] == ["provisioning"]

    await eventually(noticed, 60, "Prometheus to notice")


def test_every_metric_of_an_alert_is_seen_to_move() -> None:
    asked = set().union(*(names_in(rule["expr"]) for rule in alert_rules()))
    assert asked - OF_SERVERS <= set().union(*SEEN_TO_MOVE.values())  # tests/compose asks servers for theirs


# --- A real Prometheus. ---


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, queried over its HTTP API."""

    url: str
    client: httpx.AsyncClient

    async def query(self, expression: str) -> list[dict[str, Any]]:
        return list((await self._get("query", query=expression))["result"])

    async def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        response = await self.client.get(f"{self.url}/api/v1/{what}", params=parameters)
        assert response.status_code == 200, response.text
        data: dict[str, Any] = response.json()["data"]
        return data


@contextlib.asynccontextmanager
async def run_prometheus(stack: Stack, directory: Path) -> AsyncIterator[Prometheus]:
    """Prometheus over the stack, with the shipped configuration except for ports and intervals."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("prometheus is missing: run `scripts/setup tests`, or as root apt-get install prometheus")
    configuration = directory / "prometheus.yml"
    configuration.write_text(yaml.safe_dump(_configured_for(stack)))
    with PortClaims() as claims:
        port = claims.claim_free()
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield Prometheus(f"http://127.0.0.1:{port}", stack.client)
        finally:
            process.terminate()
            await process.wait()


def _configured_for(stack: Stack) -> dict[str, Any]:
    delivered: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = delivered["scrape_configs"]
    job["authorization"] = {"credentials": KEYS[Role.VIEWER]}  # instead of the file that the operator creates
    for target in job["static_configs"]:
        target["targets"] = [stack.url(target["labels"]["service"]).removeprefix("http://")]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus" / name) for name in delivered["rule_files"]],
        "scrape_configs": [job],
    }
