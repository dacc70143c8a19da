"""Actions of operators on orders, through a real order service, logged with every outcome."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from operations.actions import list_actions
from operations.console import ConsoleDependencies
from shared.database import Document
from shared.topology import INVENTORY_INBOX, NOTIFICATION_INBOX, PAYMENT_INBOX
from tests.support.buses import RabbitHarness
from tests.support.consoles import BY_ADMIN, NO_SERVICES, console_dependencies, pages_of
from tests.support.processes import Stack, run_stack

REASON = {"why": "the customer called"}


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    """An order service without the others: its orders wait for answers that never come."""
    async with run_stack(mongodb_url, clean_broker, database_prefix) as found:
        await found.start("order")
        yield found


@pytest.fixture
async def dependencies(stack: Stack) -> AsyncIterator[ConsoleDependencies]:
    urls = NO_SERVICES | {"order": stack.url("order")}
    async with console_dependencies(stack.mongodb_url, stack.amqp_url, stack.database_prefix, urls) as found:
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def test_actions_that_are_refused_accepted_and_unreachable(
    stack: Stack, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    order_id = await stack.place()
    page = f"/orders/{order_id}"
    assert f'href="{page}/do/cancel"' in (await pages.get(page)).text
    assert "Stock and money are returned" in (await pages.get(f"{page}/do/cancel")).text

    # A refusal of the order service is shown, and nothing is done.
    refused = await pages.post(f"{page}/do/refund", data=REASON)
    assert refused.status_code == 409
    assert "Not done" in refused.text
    assert (await stack.order(order_id))["status"] == "PENDING"

    done = await pages.post(f"{page}/do/cancel", data=REASON)
    assert (done.status_code, done.headers["location"]) == (303, page)
    order = await stack.order(order_id)
    assert (order["status"], order["failureReason"]) == ("CANCELLED", "the customer called")
    text = (await pages.get(page)).text
    assert '<h2 id="done">Actions</h2>' in text
    assert "do/cancel" not in text
    assert (await pages.get(f"{page}/do/cancel")).status_code == 409

    for process in stack.processes("order"):
        await stack.kill(process)
    away = await pages.post(f"{page}/do/retry", data=REASON)
    assert away.status_code == 503
    assert "Not done" in away.text

    written = (await list_actions(dependencies.operations)).items
    assert [entry["outcome"] for entry in written].count("started") == 3
    entries = [entry for entry in written if entry["outcome"] != "started"]
    assert [(entry["action"], entry["subject"]) for entry in entries] == [
        (f"order.{act}", order_id) for act in ("retry", "cancel", "refund")
    ]
    assert {(entry["by"], entry["why"]) for entry in entries} == {(BY_ADMIN, "the customer called")}
    outcomes = [entry["outcome"] for entry in entries]
    assert outcomes[1] == "accepted"
    assert outcomes[0].startswith("not done: the order service: it ")
    assert outcomes[2].startswith("not done: ")


async def test_a_refund_in_part_from_the_form_is_made_once(
    stack: Stack, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    order_id = await stack.place()
    page = f"/orders/{order_id}"
    assert "refund-part" not in (await pages.get(page)).text
    assert (await pages.get(f"{page}/refund-part")).status_code == 409
    fulfilled = {"status": "CONFIRMED", "stockStatus": "RESERVED", "paymentStatus": "PROCESSED", "settled": True}
    await dependencies.orders.update_one(
        {"_id": order_id}, {"$set": fulfilled, "$unset": {"unpublished": "", "dueAt": ""}}
    )
    assert f'href="{page}/refund-part"' in (await pages.get(page)).text
    form = (await pages.get(f"{page}/refund-part")).text
    assert re.search(r"10(\.00)? USD of 10(\.00)? USD is left", form), form
    (key,) = re.findall(r'name="key" value="([0-9a-f]{32})"', form)

    for amount, status, why in (("nan", 422, "such as 19.99"), ("60", 409, "10 USD of 10 USD is left, not 60 USD")):
        refused = await pages.post(f"{page}/refund-part", data=REASON | {"key": key, "amount": amount})
        assert (refused.status_code, why in refused.text) == (status, True)
    sent = REASON | {"key": key, "product": "p1", "quantity": "1", "restock": "yes"}
    for _ in range(2):
        done = await pages.post(f"{page}/refund-part", data=sent)
        assert (done.status_code, done.headers["location"]) == (303, page)
    (refund,) = await _refunds(stack, order_id)
    assert (refund["amount"], refund["restock"], refund["reason"]) == (10, True, REASON["why"])
    text = (await pages.get(page)).text
    assert '<h2 id="refunds">Refunds in part</h2>' in text
    assert "1 \N{MULTIPLICATION SIGN} p1" in text
    entries = (await list_actions(dependencies.operations, subject=order_id)).items
    assert {entry["action"] for entry in entries} == {"order.refund-part"}


async def test_a_nudge_sends_an_order_again_what_its_card_says(
    stack: Stack, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    async with RabbitHarness.open(stack.amqp_url) as harness:
        order_id = await stack.place()
        page = f"/orders/{order_id}"
        for inbox in (INVENTORY_INBOX, PAYMENT_INBOX, NOTIFICATION_INBOX):
            await harness.take_from(inbox, 1)
        card = (await pages.get(page)).text
        assert "<code>order.created to inventory.inbox</code>, <code>order.created to payment.inbox</code>" in card
        assert f'href="{page}/do/nudge"' in card
        assert "Each service answers from its record" in (await pages.get(f"{page}/do/nudge")).text
        done = await pages.post(f"{page}/do/nudge", data=REASON)
        assert (done.status_code, done.headers["location"]) == (303, page)
        for inbox in (INVENTORY_INBOX, PAYMENT_INBOX):
            (message,) = await harness.take_from(inbox, 1)
            assert (message.type, message.correlation_id) == ("order.created", order_id)
        await harness.take_from(NOTIFICATION_INBOX, 0)
    await dependencies.orders.update_one({"_id": order_id}, {"$set": {"status": "CANCELLED", "settled": True}})
    assert "do/nudge" not in (await pages.get(page)).text
    refused = await pages.post(f"{page}/do/nudge", data=REASON)
    assert (refused.status_code, "it is CANCELLED and settled" in refused.text) == (409, True)
    entries = (await list_actions(dependencies.operations, subject=order_id)).items
    assert [(entry["by"], entry["action"], entry["outcome"]) for entry in reversed(entries)] == [
        (BY_ADMIN, "order.nudge", "started"),
        (BY_ADMIN, "order.nudge", "sent again: order.created"),
    ]


async def test_what_is_held_without_an_order_is_shown_and_released(
    stack: Stack, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    client, prefix, page = dependencies.client, dependencies.prefix, "/orders/ghost"
    assert (await pages.get(page)).status_code == 404
    await client[f"{prefix}_provisioning"]["addresses"].insert_one({"_id": "192.0.2.7", "orderId": "ghost"})
    text = (await pages.get(page)).text
    assert "192.0.2.7" in text
    assert "/release" not in text
    refused = await pages.get(f"{page}/release")
    assert (refused.status_code, "nothing is held for order ghost" in refused.text) == (409, True)

    items = [{"productId": "p1", "quantity": 3}]
    reservation: Document = {"_id": "ghost", "status": "RESERVED", "items": items}
    paid: Document = {"_id": "ghost", "status": "PROCESSED", "amount": 1234, "currency": "USD", "userId": "u7"}
    records = (client[f"{prefix}_inventory"]["reservations"], client[f"{prefix}_payments"]["payments"])
    for collection, record in zip(records, (reservation, paid), strict=True):
        await collection.insert_one(record)
    assert f'href="{page}/release"' in (await pages.get(page)).text
    form = (await pages.get(f"{page}/release")).text
    for said in ("3 of p1", "12.34 USD, of user u7", "stock RESERVED, payment PROCESSED"):
        assert said in form
    async with RabbitHarness.open(stack.amqp_url) as harness:
        done = await pages.post(f"{page}/release", data=REASON)
        assert (done.status_code, done.headers["location"]) == (303, page)
        assert [m.type for m in await harness.take_from(INVENTORY_INBOX, 1)] == ["stock.release"]
        assert [m.type for m in await harness.take_from(PAYMENT_INBOX, 1)] == ["payment.refund"]
    entries = (await list_actions(dependencies.operations, subject="ghost")).items
    assert [(entry["action"], entry["outcome"]) for entry in entries] == [
        ("order.release", "stock.release and payment.refund sent"),
        ("order.release", "started"),
    ]
    for collection, status in zip(records, ("RELEASED", "REFUNDED"), strict=True):
        await collection.update_one({"_id": "ghost"}, {"$set": {"status": status}})
    assert "/release" not in (await pages.get(page)).text


async def _refunds(stack: Stack, order_id: str) -> list[dict[str, Any]]:
    answer = await stack.client.get(f"{stack.url('order')}/orders/{order_id}/refunds")
    found: list[dict[str, Any]] = answer.json()["items"]
    return found
