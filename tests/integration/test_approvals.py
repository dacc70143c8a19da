"""Acts that need a second person: who may decide, and that each is executed once, whatever ends in between."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from operations.actions import list_actions
from operations.approvals.policy import DISCARD, REPAIR, REPLAY, ApprovalPolicy
from operations.approvals.records import LONGEST_ACT, ApprovalRecords, NotDecidableError
from operations.console import ConsoleDependencies, Executor
from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.sign_in.links import SignInLinks
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Document
from shared.topology import PAYMENT_INBOX
from tests.support.access import ADMIN, key_authenticator
from tests.support.browser import run_browser
from tests.support.buses import RabbitHarness
from tests.support.consoles import (
    BASE,
    NO_SERVICES,
    OURS,
    Clock,
    a_letter,
    act_on_group,
    an_app,
    console_dependencies,
    record_letters,
    serve,
)
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks

ANNA, BORIS = (Person(name, name, frozenset({Role.OPERATOR})) for name in ("anna", "boris"))
VERA = Person("vera", "vera", frozenset({Role.VIEWER}))
POLICY = ApprovalPolicy(10_000, frozenset({REPLAY, DISCARD, REPAIR}))
PATIENCE = 60_000
"""Milliseconds that a page may take on a loaded machine."""
WHY = {"why": "because"}


class OrderService:
    """Records what it is asked to do, and for whom."""

    def __init__(self) -> None:
        self.acts: list[tuple[str, str, bytes]] = []

    def application(self) -> FastAPI:
        app = FastAPI()

        @app.post("/{path:path}")
        async def act(path: str, request: Request) -> dict[str, Any]:
            caller = await key_authenticator().authenticate(request.headers)
            self.acts.append((path, caller.id, await request.body()))
            return {}

        return app


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def orders() -> OrderService:
    return OrderService()


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, clock: Clock, orders: OrderService
) -> AsyncIterator[ConsoleDependencies]:
    async with serve(orders.application()) as url:
        urls = NO_SERVICES | {"order": url}
        options = {"clock": clock, "approval_policy": POLICY}
        async with console_dependencies(mongodb_url, amqp_url, database_prefix, urls, **options) as found:
            for order_id, total in (("large", 10_000), ("small", 9_999)):
                await found.orders.insert_one(an_order(order_id, total))
            yield found


def an_order(order_id: str, total: int) -> Document:
    at = datetime.now(UTC)
    return {"_id": order_id, "status": "FAILED", "settled": False, "totalAmount": total, "createdAt": at, "history": []}


@asynccontextmanager
async def signed_in(dependencies: ConsoleDependencies, person: Person) -> AsyncIterator[httpx.AsyncClient]:
    """The browser of a person with a session of its own."""
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=OURS) as client:
        secret, _ = await SignInLinks(dependencies.operations, dependencies.clock).create(person)
        assert (await client.post("/sign-in/link", data={"token": secret})).status_code == 303
        yield client


async def the_request(dependencies: ConsoleDependencies) -> Document:
    (record,) = await ApprovalRecords(dependencies.operations, dependencies.clock).newest(10)
    return record


async def test_a_large_refund_waits_for_another_person_and_is_done_once(
    dependencies: ConsoleDependencies, orders: OrderService
) -> None:
    async with (
        signed_in(dependencies, ANNA) as anna,
        signed_in(dependencies, ANNA) as anna_elsewhere,
        signed_in(dependencies, BORIS) as boris,
        signed_in(dependencies, VERA) as vera,
    ):
        assert "needs a second person" in (await anna.get("/orders/large/do/refund")).text
        asked = await anna.post("/orders/large/do/refund", data=WHY)
        assert (asked.status_code, asked.headers["location"]) == (303, "/approvals")
        assert orders.acts == []
        decision = f"/approvals/{(await the_request(dependencies))['_id']}"

        for page in (anna, anna_elsewhere, vera):
            assert f"{decision}/approve" not in (await page.get("/approvals")).text
        for own in (anna, anna_elsewhere):
            refused = await own.post(f"{decision}/approve")
            assert refused.status_code == 409
            assert "another person must decide" in refused.text
        refused = await vera.post(f"{decision}/approve")
        assert (refused.status_code, "This needs orders:decide" in refused.text) == (403, True)
        refused = await vera.post(f"{decision}/approve", headers=ADMIN)
        assert (refused.status_code, "a key does not say who uses it" in refused.text) == (403, True)
        assert orders.acts == []

        assert f"{decision}/approve" in (await boris.get("/approvals")).text
        assert (await boris.post(f"{decision}/approve")).status_code == 303
        assert orders.acts == [("orders/large/refund", "anna", b"")]
        again = await boris.post(f"{decision}/approve")
        assert (again.status_code, "boris has decided" in again.text) == (409, True)
        assert len(orders.acts) == 1
    record = await the_request(dependencies)
    assert (record["status"], record["outcome"]) == ("done", "accepted")
    entries = (await list_actions(dependencies.operations, subject="large")).items
    assert [(entry["by"], entry["outcome"]) for entry in reversed(entries)] == [
        ("anna", "asked for a second person"),
        ("boris", "approved, for anna"),
        ("anna, approved by boris", "started"),
        ("anna, approved by boris", "accepted"),
    ]


async def test_a_large_order_is_refunded_in_part_by_two(
    dependencies: ConsoleDependencies, orders: OrderService
) -> None:
    await dependencies.orders.update_one({"_id": "large"}, {"$set": {"status": "CONFIRMED", "currency": "USD"}})
    async with signed_in(dependencies, ANNA) as anna, signed_in(dependencies, BORIS) as boris:
        assert "needs a second person" in (await anna.get("/orders/large/refund-part")).text
        form = WHY | {"key": "0a", "amount": "12.50"}
        assert (await anna.post("/orders/large/refund-part", data=form)).headers["location"] == "/approvals"
        assert orders.acts == []
        decision = f"/approvals/{(await the_request(dependencies))['_id']}"
        assert (await boris.post(f"{decision}/approve")).status_code == 303
    ((path, caller, body),) = orders.acts
    assert (path, caller) == ("orders/large/refunds", "anna")
    assert json.loads(body) == {"reason": "because", "amount": 12.5}
    assert (await the_request(dependencies))["status"] == "done"


async def test_large_money_without_an_order_is_released_by_two(
    dependencies: ConsoleDependencies, orders: OrderService, clean_broker: str
) -> None:
    paid = {"_id": "ghost", "status": "PROCESSED", "amount": 10_000, "currency": "USD"}
    await dependencies.client[f"{dependencies.prefix}_payments"]["payments"].insert_one(paid)
    async with (
        signed_in(dependencies, ANNA) as anna,
        signed_in(dependencies, BORIS) as boris,
        RabbitHarness.open(clean_broker) as harness,
    ):
        assert "needs a second person" in (await anna.get("/orders/ghost/release")).text
        assert (await anna.post("/orders/ghost/release", data=WHY)).headers["location"] == "/approvals"
        await harness.take_from(PAYMENT_INBOX, 0)
        await boris.post(f"/approvals/{(await the_request(dependencies))['_id']}/approve")
        assert [message.type for message in await harness.take_from(PAYMENT_INBOX, 1)] == ["payment.refund"]
    record = await the_request(dependencies)
    assert (record["status"], record["outcome"]) == ("done", "stock.release and payment.refund sent")
    assert orders.acts == []


async def test_a_smaller_order_needs_nobody_else(dependencies: ConsoleDependencies, orders: OrderService) -> None:
    async with signed_in(dependencies, ANNA) as anna:
        assert "second person" not in (await anna.get("/orders/small/do/refund")).text
        assert (await anna.post("/orders/small/do/refund", data=WHY)).headers["location"] == "/orders/small"
    assert orders.acts == [("orders/small/refund", "anna", b"")]


async def test_a_group_is_replayed_or_discarded_by_two(dependencies: ConsoleDependencies, clock: Clock) -> None:
    await record_letters(dependencies, a_letter("o1"))
    clock.now = utc_now() + timedelta(minutes=1)  # what fails later is not selected
    letters = DeadLetterService(dependencies.operations)
    group = (await letters.page(Filters())).items[0]["fingerprint"]
    async with signed_in(dependencies, ANNA) as anna, signed_in(dependencies, BORIS) as boris:
        assert (await act_on_group(anna, "replay", group, **WHY)).headers["location"] == "/approvals"
        assert await letters.replays(limit=5) == []
        decision = f"/approvals/{(await the_request(dependencies))['_id']}"
        assert (await boris.post(f"{decision}/reject")).status_code == 303
        assert (await the_request(dependencies))["status"] == "rejected"
        assert await letters.replays(limit=5) == []

        clock.now += timedelta(seconds=1)
        await act_on_group(anna, "discard", group, **WHY)
        newest = (await ApprovalRecords(dependencies.operations).newest(1))[0]
        await boris.post(f"/approvals/{newest['_id']}/approve")
    assert (await letters.counts())["discarded"] == 1
    (letter,) = (await letters.page(Filters(status=("discarded",)))).items
    assert letter["discarded"]["by"] == "anna, approved by boris"


async def ask(dependencies: ConsoleDependencies) -> str:
    records = ApprovalRecords(dependencies.operations, dependencies.clock)
    return await records.ask(ANNA, action="order.retry", subject="large", why="because", parameters={})


async def test_a_request_expires_after_a_day(dependencies: ConsoleDependencies, clock: Clock) -> None:
    records, approval = ApprovalRecords(dependencies.operations, clock), await ask(dependencies)
    clock.now += timedelta(hours=24)
    with pytest.raises(NotDecidableError, match="expired"):
        await records.decide(approval, BORIS, approve=True)
    assert (await the_request(dependencies))["status"] == "expired"


async def test_what_was_approved_is_done_by_another_process_if_that_of_the_decision_ends(
    dependencies: ConsoleDependencies, orders: OrderService
) -> None:
    approval = await ask(dependencies)
    await ApprovalRecords(dependencies.operations).decide(approval, BORIS, approve=True)
    # The process ended here. Two others look for what is left, at the same time.
    done = await asyncio.gather(*(Executor(dependencies).work() for _ in range(4)))
    assert sorted(done) == [False, False, False, True]
    assert [act[0] for act in orders.acts] == ["orders/large/retry"]
    running = asyncio.create_task(Executor(dependencies).run())

    async def is_published() -> bool:
        return (await ApprovalRecords(dependencies.operations).policy()) == POLICY

    await eventually(is_published, 60, "the policy to be published")
    await end_tasks(running)
    assert len(orders.acts) == 1


async def test_an_act_whose_process_ended_in_the_middle_is_not_repeated(
    dependencies: ConsoleDependencies, orders: OrderService, clock: Clock
) -> None:
    records, approval = ApprovalRecords(dependencies.operations, clock), await ask(dependencies)
    await records.decide(approval, BORIS, approve=True)
    assert await records.claim() is not None
    await records.give_up_lost()
    assert (await the_request(dependencies))["status"] == "executing"
    clock.now += LONGEST_ACT
    await records.give_up_lost()
    record = await the_request(dependencies)
    assert (record["status"], "check what came of it" in record["outcome"]) == ("outcome unknown", True)
    assert not await Executor(dependencies).work()
    assert orders.acts == []


async def test_only_one_of_two_decisions_counts(dependencies: ConsoleDependencies) -> None:
    records, approval = ApprovalRecords(dependencies.operations), await ask(dependencies)
    carl = Person("carl", "carl", frozenset({Role.ADMIN}))
    decisions = (records.decide(approval, BORIS, approve=True), records.decide(approval, carl, approve=False))
    results = await asyncio.gather(*decisions, return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [NotDecidableError]


async def test_two_people_decide_in_their_browsers(dependencies: ConsoleDependencies, orders: OrderService) -> None:
    async with serve(an_app(dependencies)) as url, run_browser() as browser:
        pages = []
        for person in (ANNA, BORIS):
            context = await browser.new_context(base_url=url, viewport={"width": 1100, "height": 600})
            page = await context.new_page()
            page.set_default_timeout(PATIENCE)
            secret, _ = await SignInLinks(dependencies.operations, dependencies.clock).create(person)
            await page.goto(f"/sign-in/link?token={secret}")
            await page.get_by_role("button", name="Sign in").click()
            await page.wait_for_url(f"{url}/")
            pages.append(page)
        anna, boris = pages
        await anna.goto("/orders/large/do/refund")
        await anna.get_by_label("Reason").fill("the customer called")
        await anna.get_by_role("button", name="Refund the order").click()
        await anna.get_by_text("another person must decide").wait_for()
        await boris.goto("/approvals")
        if directory := os.environ.get("ORDERSAGA_SCREENSHOTS"):
            await boris.screenshot(path=Path(directory) / "approvals.png")
        await boris.get_by_role("button", name="Approve").click()
        await boris.get_by_text("accepted").wait_for()
    assert [act[:2] for act in orders.acts] == [("orders/large/refund", "anna")]
