"""`ordersaga orders` over a real order service: lists, actions on many orders, and what an interruption leaves."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from typer.testing import CliRunner

from operations import cli
from operations.actions import list_actions
from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from operations.console import ConsoleDependencies
from operations.console.bulk_executor import BulkExecutor
from operations.order_actions.bulk import BY_COMMAND, CLAIM_VALID_FOR, BulkActions
from operations.sign_in.person import Person
from order_service.order import Order, Status
from order_service.orders import NewRecord, new_document
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.contracts.inventory import ServerSpecification
from shared.database import Collection, Database, Document
from shared.failpoints import BULK_ACTED, BULK_CLAIMED, BULK_NOTED, BULK_RECORDED, SimulatedCrashError
from tests.support.access import ADMIN_KEY, KEYS, bearer
from tests.support.builders import an_order
from tests.support.buses import RabbitHarness
from tests.support.consoles import BY_ADMIN, NO_SERVICES, Clock, console_dependencies, hidden, pages_of
from tests.support.processes import Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases

ANN = Person("ann", "ann", frozenset({Role.ADMIN}))
WHY = ("--why", "the provider is back")
RETRIED, CANCELLED = "order.retry_requested", "order.cancel_requested"


@dataclass
class Shop:
    """An order service without the others, and its orders."""

    stack: Stack
    client: AsyncMongoClient[Document]

    @property
    def orders(self) -> Collection:
        return self.client[f"{self.stack.database_prefix}_orders"]["orders"]

    @property
    def operations(self) -> Database:
        return self.client[f"{self.stack.database_prefix}_operations"]

    async def run(self, *words: str, given: str | None = None, status: int = 0, **environment: str) -> str:
        """Run the command, check its exit status and return its output."""
        known = {name: value for name, value in self.stack.command_environment.items() if name.startswith("ORDERSAGA_")}
        known |= {"ORDERSAGA_API_KEY": ADMIN_KEY, "ORDERSAGA_OPERATOR": "ann", "COLUMNS": "120"}
        runner, arguments = CliRunner(env=known | environment), ["orders", *words]
        result = await asyncio.to_thread(runner.invoke, cli.build_application(arguments), arguments, input=given)
        assert result.exit_code == status, (result.output, result.exception)
        return result.output if status or "--json" not in words else result.stdout

    async def document(self, *words: str, status: int = 0) -> dict[str, Any]:
        output = await self.run(*words, "--json", status=status)
        found: dict[str, Any] = json.loads(output[output.index("\n{") if status else 0 :])
        return found

    async def store(self, *orders: Order) -> list[str]:
        """Store orders as the order service does; return their ids."""
        await self.orders.insert_many([new_document(NewRecord(order)) for order in orders])
        return [order.order_id for order in orders]

    async def failed(self, number: int, **changes: Any) -> list[str]:
        """Store orders whose server could not be bought, and whose money is held."""
        return await self.store(*(a_failed_order(user_id=f"u{n % 3}", **changes) for n in range(number)))

    async def events(self, *order_ids: str) -> list[str]:
        """Return the events of the orders' histories that requests caused."""
        found = [order async for order in self.orders.find({"_id": {"$in": list(order_ids)}})]
        return [
            entry["event"] for order in found for entry in order["history"] if entry["event"].endswith("_requested")
        ]

    async def log(self, order_id: str) -> list[tuple[str, ...]]:
        items = (await list_actions(self.operations, subject=order_id)).items
        return [tuple(item[name] for name in ("by", "why", "action", "outcome")) for item in reversed(items)]

    @asynccontextmanager
    async def dependencies(self, **options: Any) -> AsyncIterator[ConsoleDependencies]:
        stack = self.stack
        urls = NO_SERVICES | {"order": stack.url("order")}
        async with console_dependencies(
            stack.mongodb_url, stack.amqp_url, stack.database_prefix, urls, **options
        ) as found:
            yield found


def a_failed_order(**changes: Any) -> Order:
    spec = ServerSpecification(package="basic", package_id="1", ram=2)
    failure: dict[str, Any] = {"failure_reason": "No address is free", "failure_code": "provisioning_failed"}
    held = {"stock_status": "RESERVED", "payment_status": "PROCESSED", "fulfilment": "vps", "provisioning_spec": spec}
    return an_order(status=Status.FAILED, provisioning_run=1, provisioning_status="FAILED", **held | failure | changes)


@pytest.fixture(scope="module")
async def running(servers: Servers) -> AsyncIterator[Stack]:
    """One order service for all tests."""
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix) as stack:
        await stack.start("order")
        yield stack
    await drop_databases(servers.mongodb_url, prefix)
    await delete_topology(servers.amqp_url)


@pytest.fixture
async def shop(running: Stack) -> AsyncIterator[Shop]:
    async with AsyncMongoClient[Document](running.mongodb_url, tz_aware=True, w="majority") as client:
        found = Shop(running, client)
        yield found
        await found.orders.delete_many({})
        for name in ("bulk_actions", "bulk_action_orders", "approval_policy", "approvals"):
            await found.operations[name].delete_many({})


async def test_a_list_is_filtered_paged_and_says_what_it_leaves_out(shop: Shop) -> None:
    hour_ago = utc_now() - timedelta(hours=1)
    failed = await shop.failed(3)
    (other,) = await shop.failed(1, failure_reason="Nothing else", failure_code="no_address", owner_id="shop1")
    (old,) = await shop.store(an_order(user_id="u9", now=hour_ago))

    async def ids(*words: str) -> list[str]:
        return [item["orderId"] for item in (await shop.document("list", *words))["items"]]

    assert await ids("--stuck") == await ids("--user", "u9") == await ids("--until", "30m") == [old]
    assert (
        await ids("--code", "no_address") == await ids("--owner", "shop1") == await ids("--reason", "Noth") == [other]
    )
    assert await ids(failed[0], "--product", "p1") == [failed[0]]
    assert await ids("--product", "p2") == await ids("--status", "completed") == []
    assert len(await ids("--since", "30m", "--status", "FAILED,PENDING", "--unsettled")) == 4
    page = await shop.document("list", "--limit", "3")
    assert (len(page["items"]), page["total"], page["totalIsExact"]) == (3, 5, True)
    rest = await shop.document("list", "--limit", "3", "--cursor", page["nextCursor"])
    assert (rest["items"][-1]["orderId"], rest["nextCursor"]) == (old, None)
    assert {item["orderId"] for item in page["items"] + rest["items"]} == {*failed, other, old}

    printed = await shop.run("list", "--limit", "3")
    assert "3 of 5 orders" in printed
    assert f"--cursor {page['nextCursor']}" in printed
    assert "10.00 USD" in printed
    await shop.run("list", "--cursor", "nonsense", status=2)
    assert "'EATEN' is not one of PENDING" in await shop.run("list", "--status", "eaten", status=2)
    assert "waits for stock: Reserving" in await shop.run("show", old)
    assert f"No service knows order {'0' * 32}" in await shop.run("show", "0" * 32, status=1)


async def test_an_action_asks_with_orders_customers_and_money_and_each_order_has_its_result(shop: Shop) -> None:
    failed = await shop.failed(4)
    await shop.store(an_order())
    asked = "Retry 4 orders of 3 customers, 40.00 USD?"
    assert asked in await shop.run("retry", "--status", "FAILED", given="n\n", status=1)
    assert await shop.events(*failed) == []
    printed = await shop.run(
        "retry", "--code", "provisioning_failed", "--rate", "500", given="y\nthe provider is back\n"
    )
    assert asked in printed
    assert "4 done" in printed
    assert all(order_id in printed for order_id in failed)
    assert await shop.events(*failed) == [RETRIED] * 4
    for order_id in failed:
        assert await shop.log(order_id) == [
            ("ann", "the provider is back", "order.retry", outcome) for outcome in ("started", "accepted")
        ]
    assert "no order matches" in await shop.run("retry", "--user", "nobody", "--yes", *WHY, status=1)
    refused = await shop.run("retry", "--all", "--yes", *WHY, status=1)
    assert "5 orders match, and none of them can be retried" in refused


async def test_one_order_that_fails_makes_the_status_1_and_holds_up_no_other(shop: Shop) -> None:
    (pending,) = await shop.store(an_order())
    (failed,) = await shop.failed(1)
    result = await shop.document("cancel", failed, pending, "nobody's", "--yes", *WHY, status=1)
    outcomes = {each["orderId"]: (each["outcome"], each["detail"]) for each in result["orders"]}
    assert outcomes[pending] == ("done", "accepted")
    assert outcomes[failed][0] == "failed"
    assert "FAILED, for an operator to retry or refund: it cannot be cancelled" in outcomes[failed][1]
    assert outcomes["nobody's"] == ("failed", "there is no such order")
    assert (result["done"], result["failed"], result["total"]) == (1, 2, 3)
    assert (await shop.stack.order(pending))["failureReason"] == "the provider is back"
    again = await shop.document("resume", result["id"], status=1)
    assert again["orders"] == result["orders"]
    assert await shop.events(pending) == [CANCELLED]


@pytest.mark.parametrize(
    "words",
    [
        ("retry",),
        ("retry", "--all", "--user", "u1"),
        ("retry", "o1", "--user", "u1", "--yes", *WHY),
        ("retry", "--all", "--yes"),
        ("retry", "--all", "--json", *WHY),
        ("retry", "--all", "--since", "yesterday"),
        ("retry", "--all", "--yes", "--why", " "),
        ("retry", "--all", "--rate", "0"),
    ],
    ids=" ".join,
)
async def test_wrong_usage(shop: Shop, words: tuple[str, ...]) -> None:
    await shop.failed(1)
    await shop.run(*words, status=2)


async def test_a_key_without_the_permission_and_a_service_that_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (failed,) = await shop.failed(1)
    refused = await shop.run("retry", failed, "--yes", *WHY, status=1, ORDERSAGA_API_KEY=KEYS[Role.VIEWER])
    assert "`orders retry` needs the permission orders:decide" in refused
    away = {"ORDERSAGA_ORDER_URL": "http://127.0.0.1:1"}
    await shop.run("retry", failed, "--yes", *WHY, status=1, **away)
    monkeypatch.setattr("operations.console.bulk_executor.PATIENCE_SECONDS", 0.0)
    reachable = {"ORDERSAGA_CONSOLE_URL": shop.stack.url("order")}
    await shop.run("retry", failed, "--yes", *WHY, status=1, **away, **reachable)
    assert await shop.events(failed) == []
    assert "1 done" in await shop.run("retry", failed, "--yes", *WHY)
    assert await shop.events(failed) == [RETRIED]
    assert await shop.operations["bulk_actions"].count_documents({}) == 1, "the same command continues"


async def test_a_large_order_waits_for_a_second_person(shop: Shop) -> None:
    (large,) = await shop.failed(1, total_amount=10_000)
    (small,) = await shop.failed(1)
    records = ApprovalRecords(shop.operations)
    await records.publish(ApprovalPolicy(10_000))
    result = await shop.document("refund", "--all", "--yes", *WHY, status=1)
    assert (result["done"], result["waiting"]) == (1, 1)
    assert await shop.events(large, small) == ["order.refund_requested"]
    (asked,) = await records.newest(10)
    assert (asked["action"], asked["subject"], asked["status"]) == ("order.refund", large, "pending")


STEPS = (BULK_CLAIMED, BULK_NOTED, BULK_ACTED, BULK_RECORDED)


@pytest.mark.parametrize("name", ["retry", "refund", "cancel"])
async def test_killed_at_every_step_and_run_again_it_neither_skips_nor_doubles(shop: Shop, name: str) -> None:
    """Each run is killed at the next step of the next order; an order that was retried fails again meanwhile."""
    make = an_order if name == "cancel" else a_failed_order
    *some, large = await shop.store(*(make() for _ in range(5)), make(total_amount=10_000))
    clock, crashes = Clock(), Counter[str]()
    policy = ApprovalPolicy(10_000)

    def crash(point: str) -> None:
        if crashes[point] <= min(crashes[other] for other in STEPS):
            crashes[point] += 1
            raise SimulatedCrashError(point)

    async with shop.dependencies(clock=clock, approval_policy=policy) as dependencies:
        bulk = await start(dependencies, clock, name)
        for _ in range(100):
            clock.now += CLAIM_VALID_FOR
            try:
                await BulkExecutor(dependencies, crash).run(bulk)
            except SimulatedCrashError:
                await fail_again(shop)
                continue
            break
        results = await BulkActions(dependencies.operations).results(bulk["_id"])
        ended = await BulkActions(dependencies.operations).find(bulk["_id"])
        asked = await ApprovalRecords(dependencies.operations).newest(10)
    assert min(crashes.values()) >= 2, "every step has been killed at"
    assert ended is not None
    assert (ended["status"], len(results)) == ("ended", 6)
    assert {item["orderId"]: item["outcome"] for item in results} == dict.fromkeys(some, "done") | {large: "waiting"}
    event = f"order.{name}_requested"
    for order_id in some:
        assert await shop.events(order_id) == [event]
    assert await shop.events(large) == []
    assert [record["subject"] for record in asked] == [large]


async def start(dependencies: ConsoleDependencies, clock: Clock, name: str) -> Document:
    found = await dependencies.orders.find({}).sort("_id", 1).to_list(None)
    records = BulkActions(dependencies.operations, clock)
    return await records.start(found, person=ANN, why="because", action=name, selection={}, rate=1e6, via=BY_COMMAND)


async def fail_again(shop: Shop) -> None:
    """Let the orders that are being provisioned fail again, so that they could be retried twice."""
    again = {"$set": {"status": "FAILED", "provisioningStatus": "FAILED"}, "$inc": {"version": 1}}
    await shop.orders.update_many({"status": "PROVISIONING"}, again | {"$unset": {"unpublished": "", "dueAt": ""}})


async def test_two_processes_share_an_action(shop: Shop) -> None:
    failed = await shop.failed(8)
    clock = Clock()
    async with shop.dependencies() as one, shop.dependencies() as other:
        bulk = await start(one, clock, "retry")
        await asyncio.gather(BulkExecutor(one).run(bulk), BulkExecutor(other).run(bulk))
        assert await BulkActions(one.operations).outcomes(bulk["_id"]) == {"done": 8}
    assert await shop.events(*failed) == [RETRIED] * 8


async def test_an_interrupted_command_continues_when_it_is_run_again(shop: Shop) -> None:
    failed = await shop.failed(3)
    words = ("retry", "--code", "provisioning_failed", "--yes", *WHY)

    def crash(point: str) -> None:
        if point == BULK_ACTED:
            raise SimulatedCrashError(point)

    async with shop.dependencies() as dependencies:
        records = BulkActions(dependencies.operations)
        bulk = await records.start(
            await dependencies.orders.find({}).to_list(None),
            person=ANN,
            why="because",
            action="retry",
            selection={"code": "provisioning_failed"},
            rate=500,
            via=BY_COMMAND,
        )
        with pytest.raises(SimulatedCrashError):
            await BulkExecutor(dependencies, crash).run(bulk)
    await shop.operations["bulk_action_orders"].update_many({}, {"$unset": {"claimedAt": ""}})
    await shop.failed(1, failure_code="another")
    result = await shop.document(*words)
    assert (result["id"], result["done"]) == (bulk["_id"], 3)
    assert await shop.events(*failed) == [RETRIED] * 3
    assert "no order matches" in await shop.run(*words, status=1)


@pytest.mark.parametrize(
    ("collection", "changes", "said"),
    [
        ("bulk_actions", {"by": Person("bob", "bob", frozenset()).as_document()}, "was asked for by bob"),
        ("bulk_actions", {"at": utc_now() - timedelta(hours=2)}, "was asked for at "),
        ("bulk_action_orders", {"claimedAt": utc_now() + timedelta(hours=1), "outcome": "done"}, "may be running now"),
    ],
    ids=["another person", "old", "running"],
)
async def test_a_command_continues_no_action_that_may_be_another(
    shop: Shop, collection: str, changes: Document, said: str
) -> None:
    failed = await shop.failed(1)
    async with shop.dependencies() as dependencies:
        bulk = await BulkActions(dependencies.operations).start(
            [{"_id": "o1"}, {"_id": "o2"}],
            person=ANN,
            why="because",
            action="retry",
            selection={"all_orders": True},
            rate=500,
            via=BY_COMMAND,
        )
    await shop.operations[collection].update_one({}, {"$set": changes})
    printed = " ".join((await shop.run("retry", "--all", "--yes", *WHY)).split())
    assert f"the same action {said}" in printed
    assert f"`ordersaga orders resume {bulk['_id']}` continues it" in printed
    assert "1 done" in printed
    assert await shop.events(*failed) == [RETRIED]


async def test_a_nudge_sends_an_order_again_what_it_is_owed_and_only_that(shop: Shop) -> None:
    old = utc_now() - timedelta(hours=1)
    paid = {"status": Status.CANCELLED, "stock_status": "RELEASED", "payment_status": "PROCESSED"}
    (cancelled,) = await shop.store(an_order(now=old, settled=False, deadline=utc_now() + timedelta(hours=1), **paid))
    (settled, decided) = await shop.store(an_order(settled=True, **paid), a_failed_order(now=old))
    async with RabbitHarness.open(shop.stack.amqp_url) as harness:
        await harness.take_from("payment.inbox", 0)
        result = await shop.document("nudge", "--stuck", "--yes", *WHY)
        assert [(each["orderId"], each["detail"]) for each in result["orders"]] == [
            (cancelled, "sent again: payment.refund")
        ]
        (message,) = await harness.take_from("payment.inbox", 1)
        assert (message.type, message.correlation_id) == ("payment.refund", cancelled)
    assert await shop.log(cancelled) == [
        ("ann", "the provider is back", "order.nudge", outcome) for outcome in ("started", "sent again: payment.refund")
    ]
    await shop.orders.update_one({"_id": cancelled}, {"$set": {"items": ["p1"]}})
    refused = await shop.document("nudge", cancelled, settled, decided, "--yes", *WHY, status=1)
    details = {each["orderId"]: each["detail"] for each in refused["orders"]}
    assert details[settled] == "it is CANCELLED and settled, and waits for nothing"
    assert "retry or refund it" in details[decided]
    assert "its record is damaged" in details[cancelled]


async def test_ticked_orders_are_retried_in_the_console_with_one_text(shop: Shop) -> None:
    """Four failed orders: the selection, one click, one text and its confirmation; each has its result."""
    failed = await shop.failed(4)
    (large,) = await shop.failed(1, total_amount=10_000)
    (pending,) = await shop.store(an_order())
    policy = ApprovalPolicy(10_000)
    async with shop.dependencies(approval_policy=policy) as dependencies, pages_of(dependencies) as pages:
        listed = (await pages.get("/orders?status=FAILED")).text
        assert all(f'name="order" value="{order_id}"' in listed for order_id in failed)
        assert 'formaction="/bulk-actions/retry"' in listed
        ticked = {"order": [*failed, pending]}
        asked = (await pages.get("/bulk-actions/retry", params=ticked)).text
        assert "Retry 4 orders of 3 customers, 40.00 USD</button>" in asked
        assert "1 of the selected orders cannot be retried" in asked
        sent = hidden(asked) | {"why": "the provider is back"}
        done, again = await asyncio.gather(*(pages.post("/bulk-actions/retry", data=sent) for _ in range(2)))
        assert (done.status_code, again.status_code) == (303, 303)
        results = done.headers["location"]
        assert again.headers["location"] == results
        assert await shop.operations["bulk_actions"].count_documents({}) == 1
        assert 'hx-get="' in (await pages.get(results)).text
        await BulkExecutor(dependencies).work()
        shown = (await pages.get(results)).text
        assert "Every order is retried." in shown
        assert shown.count("accepted") == 4
        assert await shop.events(*failed) == [RETRIED] * 4
        assert await shop.events(large, pending) == []

        form = (await pages.get("/bulk-actions/refund", params={"matching": "1", "status": "FAILED"})).text
        assert "Refund 1 order of 1 customer, 100.00 USD</button>" in form
        assert 'name="search" value="status=FAILED"' in form
        done = await pages.post("/bulk-actions/refund", data=hidden(form) | {"why": "given up"})
        await BulkExecutor(dependencies).work()
        assert "waits for a second person" in (await pages.get(done.headers["location"])).text
        assert (await pages.get("/bulk-actions/refund")).status_code == 409
        nothing = await pages.get("/bulk-actions/refund", params={"order": [pending]})
        assert (nothing.status_code, "None of the 1 selected orders can be refunded" in nothing.text) == (409, True)
        assert (await pages.get("/bulk-actions/results/none")).status_code == 404
        viewer = bearer(KEYS[Role.VIEWER])
        assert "/bulk-actions/" not in (await pages.get("/orders", headers=viewer)).text
        assert (await pages.get("/bulk-actions/retry", params=ticked, headers=viewer)).status_code == 403
    for order_id in failed:
        by, why, action, outcome = (await shop.log(order_id))[-1]
        assert (by, why, action, outcome) == (BY_ADMIN, "the provider is back", "order.retry", "accepted")


async def test_what_a_form_of_the_console_does_not_show_is_not_done(shop: Shop) -> None:
    failed = await shop.failed(2)
    async with shop.dependencies() as dependencies, pages_of(dependencies) as pages:
        asked = await pages.get("/bulk-actions/refund", params={"matching": "1", "status": "FAILED"})
        form = hidden(asked.text) | {"why": "given up"}
        nothing = await pages.post("/bulk-actions/refund", data=form | {"matching": ""})
        assert (nothing.status_code, "No order is selected" in nothing.text) == (409, True)
        failed += await shop.failed(1)
        changed = await pages.post("/bulk-actions/refund", data=form)
        assert (changed.status_code, "The orders have changed" in changed.text) == (409, True)
        assert "Refund 3 orders of 2 customers, 30.00 USD</button>" in changed.text
        assert 'name="why" value="given up"' in changed.text
        again = hidden(changed.text) | {"why": "given up"}
        await shop.orders.update_many({}, {"$set": {"settled": True}})
        none = await pages.post("/bulk-actions/refund", data=again)
        assert (none.status_code, "None of the 3 selected orders can be refunded" in none.text) == (409, True)
        assert await shop.operations["bulk_actions"].count_documents({}) == 0
        await shop.orders.update_many({}, {"$set": {"settled": False}})
        assert (await pages.post("/bulk-actions/refund", data=again)).status_code == 303
        await BulkExecutor(dependencies).work()
    assert await shop.events(*failed) == ["order.refund_requested"] * 3


async def test_the_overview_retries_the_failed_orders_that_it_shows_and_no_others(shop: Shop) -> None:
    """One text and one click. Another set of the same number, customers and amount is another set."""
    replaced, *kept = await shop.failed(3)
    async with shop.dependencies() as dependencies, pages_of(dependencies) as pages:
        overview = (await pages.get("/")).text
        assert "Retry 3 orders of 3 customers, 30.00 USD</button>" in overview
        await shop.orders.update_one({"_id": replaced}, {"$set": {"settled": True}})
        (other,) = await shop.failed(1)
        changed = await pages.post("/bulk-actions/retry", data=hidden(overview) | {"why": "it is back"})
        assert (changed.status_code, "The orders have changed" in changed.text) == (409, True)
        assert "Retry 3 orders of 3 customers, 30.00 USD</button>" in changed.text
        assert await shop.operations["bulk_actions"].count_documents({}) == 0
        again = await pages.post("/bulk-actions/retry", data=hidden(changed.text) | {"why": "it is back"})
        assert again.status_code == 303
        await BulkExecutor(dependencies).work()
        assert 'action="/bulk-actions/retry"' not in (await pages.get("/", headers=bearer(KEYS[Role.VIEWER]))).text
    assert await shop.events(other, *kept) == [RETRIED] * 3
    assert await shop.events(replaced) == []


async def test_a_damaged_order_holds_up_no_other(shop: Shop) -> None:
    damaged, sound = await shop.failed(2)
    await shop.orders.update_one({"_id": damaged}, {"$set": {"totalAmount": "much"}})
    async with shop.dependencies(approval_policy=ApprovalPolicy(10_000)) as dependencies:
        bulk = await start(dependencies, Clock(), "retry")
        await BulkExecutor(dependencies).run(bulk)
        results = await BulkActions(dependencies.operations).results(bulk["_id"])
    found = {item["orderId"]: (item["outcome"], item["detail"]) for item in results}
    unexpected = "unexpected: TypeError; the log of this process has the traceback"
    assert found == {damaged: ("failed", unexpected), sound: ("done", "accepted")}


async def test_an_action_is_stopped_before_its_next_order(shop: Shop) -> None:
    failed = await shop.failed(3)
    async with shop.dependencies() as dependencies, pages_of(dependencies) as pages:
        by_command, by_console = [await start(dependencies, Clock(), "retry") for _ in range(2)]

        item = await BulkActions(dependencies.operations).claim(by_command["_id"])
        assert item is not None
        await BulkActions(dependencies.operations).record(item, "done", "accepted")
        assert "stopped after 1 of 3 orders" in await shop.run("stop", by_command["_id"], *WHY)
        await BulkExecutor(dependencies).run(by_command)
        assert await shop.events(*failed) == []
        assert "was over already" in await shop.run("stop", by_command["_id"], *WHY, status=1)
        assert "Stopped" in (await pages.get(f"/bulk-actions/results/{by_command['_id']}")).text
        address = f"/bulk-actions/retry/stop/{by_console['_id']}"
        assert address in (await pages.get(f"/bulk-actions/results/{by_console['_id']}")).text
        assert (await pages.post(address, data={"why": "wrong orders"})).status_code == 303
        await BulkExecutor(dependencies).run(by_console)
    assert await shop.events(*failed) == []
    assert await shop.log(by_console["_id"]) == [(BY_ADMIN, "wrong orders", "orders.retry", "stopped")]
