"""What a shop lets us know about an order, over HTTP: stored in one place, shown, hidden, found and erased."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pymongo
import pytest

from order_service.particulars import PERSONAL
from shared import topology
from shared.access.permissions import Role
from tests.support.access import ADMIN_KEY, KEYS, OTHER_CLIENT_KEY, bearer
from tests.support.builders import order_body
from tests.support.commands import run_command
from tests.support.processes import Stack, run_stack
from tests.support.servers import delete_topology
from tests.unit.test_new_order import FULL

PREFIX = "t-particulars"
PERSON = ("Ann", "example.org", "1234", "High Street", "Leeds", "Ring twice", "A gift")
"""Parts of what FULL says about the person."""


@pytest.fixture(scope="module")
async def stack(servers: Any) -> AsyncIterator[Stack]:
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, PREFIX) as running:
        await running.start("order", "inventory", "payment")
        for product in ("p1", "p2"):
            await running.stock(product, 1000)
        yield running
    await delete_topology(servers.amqp_url)


async def get(stack: Stack, path: str, role: Role = Role.ADMIN, key: str | None = None) -> Any:
    headers = bearer(key or KEYS[role])
    answer = await stack.client.get(f"{stack.url('order')}{path}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_order_with_everything_goes_its_way_and_no_message_names_the_person(stack: Stack) -> None:
    connection = await aio_pika.connect(stack.amqp_url)
    async with connection:
        channel = await connection.channel()
        copies = await channel.declare_queue(exclusive=True)
        await copies.bind(topology.EXCHANGE, "#")
        order_id = await stack.place(**FULL)
        order = await stack.settled(order_id)
        messages = []
        while (message := await copies.get(no_ack=True, fail=False)) is not None:
            messages.append(message.body.decode())
    assert {name: order[name] for name in FULL} == FULL
    assert order["status"] == "CONFIRMED"
    assert order["confirmedAt"] == order["updatedAt"]
    assert order["completedAt"] is None
    assert order["slot"].startswith("slot:")
    assert order["slotVisibleAt"] <= order["slotStart"]
    assert any("totalAmount" in message for message in messages)
    assert not [text for text in (*PERSON, "Pizza", "SPRING", "basket.id") if text in "".join(messages)]
    assert [line["status"] for line in (await get(stack, f"/orders/{order_id}"))["history"]][-1] == "CONFIRMED"


async def test_people_who_need_not_know_do_not_see_the_person(stack: Stack) -> None:
    order_id = await stack.place(**FULL)
    for role in Role:
        shown = await get(stack, f"/orders/{order_id}", role)
        sees = role in (Role.CUSTOMER, Role.CLIENT, Role.OPERATOR, Role.ADMIN)
        assert ("customer" in shown, "note" in shown) == (sees, sees), role
        assert [text for text in PERSON if text in str(shown)] == [text for text in PERSON if sees], role
        assert shown["items"] == FULL["items"]


async def test_an_order_is_found_by_its_number(stack: Stack) -> None:
    order = await stack.order(await stack.place())
    number = order["orderNumber"].replace("-", " ").lower()
    page = await get(stack, f"/orders?orderNumber={number}")
    assert [found["orderId"] for found in page["items"]] == [order["orderId"]]
    assert (await get(stack, "/orders?orderNumber=0000-0000"))["items"] == []
    assert (await get(stack, f"/orders?orderNumber={number}", key=OTHER_CLIENT_KEY))["items"] == []
    refused = await stack.client.get(f"{stack.url('order')}/orders?orderNumber=12")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "orderNumber")


async def test_a_list_has_names_of_items_only_if_asked_for_and_never_the_person(stack: Stack) -> None:
    order = await stack.order(await stack.place(**FULL | {"userId": "of-list"}))
    (found,) = (await get(stack, "/orders?userId=of-list"))["items"]
    assert "items" not in found
    (found,) = (await get(stack, "/orders?userId=of-list&include=items"))["items"]
    assert found["items"] == order["items"] == FULL["items"]
    assert not [text for text in PERSON if text in str(found)]


async def test_the_same_key_and_body_answer_the_same_order_with_its_particulars(stack: Stack, unique_id: str) -> None:
    async def post(**changes: Any) -> Any:
        return await stack.client.post(
            f"{stack.url('order')}/orders", json=order_body(**FULL | changes), headers={"Idempotency-Key": unique_id}
        )

    first, again, other = await post(), await post(), await post(note="Another note")
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json()["orderId"] == again.json()["orderId"]
    assert first.json()["customer"] == again.json()["customer"] == FULL["customer"]


async def test_what_is_known_about_a_person_is_erased_and_the_books_stay(stack: Stack) -> None:
    erased = [await stack.place(**FULL | {"userId": "leaving"}) for _ in range(2)]
    plain, kept = await stack.place(userId="leaving"), await stack.place(**FULL | {"userId": "staying"})
    before = [await stack.settled(order_id) for order_id in (*erased, plain, kept)]
    url = f"{stack.url('order')}/users/leaving/personal-data"
    assert (await stack.client.delete(url, headers=bearer(KEYS[Role.OPERATOR]))).status_code == 403
    assert (await stack.client.delete(url)).json() == {"userId": "leaving", "orders": 2}
    assert (await stack.client.delete(url)).json() == {"userId": "leaving", "orders": 0}
    after = [await stack.order(found["orderId"]) for found in before]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert new.pop("personalDataErasedAt")
        old["delivery"] = {"slot": "auto", "method": "delivery", "callBefore": True}
        assert new == {name: value for name, value in old.items() if name not in ("customer", "note")}
    assert after[2:] == before[2:]
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        for name in await client.list_database_names():
            if not name.startswith(f"{PREFIX}_"):
                continue
            for collection in await client[name].list_collection_names():
                async for document in client[name][collection].find({"_id": {"$in": erased}}):
                    assert PERSONAL not in document
                    assert not [text for text in PERSON if text in str(document)], (name, collection)
        log = client[f"{PREFIX}_orders"]["actions"]
        assert await log.count_documents({"action": "personal:erase", "outcome": "200"}) == 2
    await stack.assert_books_balance()


async def test_the_command_erases_a_person_and_says_what_it_did(stack: Stack) -> None:
    order_id = await stack.place(**FULL | {"userId": "by command"})
    await stack.settled(order_id)
    environment = {
        "ORDERSAGA_MONGODB_URL": stack.mongodb_url,
        "ORDERSAGA_AMQP_URL": stack.amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": PREFIX,
        "ORDERSAGA_ORDER_URL": stack.url("order"),
    }

    async def erase(*words: str, key: str = ADMIN_KEY) -> tuple[int, str, str]:
        own = environment | {"ORDERSAGA_API_KEY": key}
        return await run_command("erase", "--user", "by command", *words, environment=own)

    status, _, errors = await erase("--yes", key=KEYS[Role.OPERATOR])
    assert (status, "needs the permission personal:erase" in errors) == (1, True)
    status, printed, _ = await erase("--yes", "--json")
    counted = {"orders": 1, "deadLetters": 0, "archiveFilesWithPersonalData": 0}
    assert (status, json.loads(printed)) == (0, {"userId": "by command"} | counted)
    assert (await erase("--yes"))[1] == "Erased from 0 orders and 0 dead letters of by command.\n"
    assert "customer" not in await stack.order(order_id)
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        noted = await client[f"{PREFIX}_operations"]["actions"].find({"action": "personal-data.erase"}).to_list(None)
    assert [entry["outcome"] for entry in noted] == [
        "erased from 1 orders and 0 dead letters",
        "erased from 0 orders and 0 dead letters",
    ]
