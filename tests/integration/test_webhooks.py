"""Webhooks: two processes of the notification service, a real broker and database, and a receiver that misbehaves."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pymongo
import pytest
from cryptography.fernet import Fernet

from shared.access.permissions import Role
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import OrderConfirmed, OrderCreated, OrderFailed, PackageLowIps
from shared.contracts.orders import Item
from shared.failpoints import HANDLED, WEBHOOK_CLAIMED, WEBHOOK_DELETED, WEBHOOK_DELETING, WEBHOOK_SENT
from tests.support.access import ADMIN, KEYS, OTHER_CLIENT_KEY, OWNER, bearer
from tests.support.eventually import eventually
from tests.support.processes import Process, Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases
from tests.support.shop_receivers import FAIL, GONE, HANG, OK, RESET, Receiver, run_receiver

AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
CLIENT = bearer(KEYS[Role.CLIENT])
SETTINGS: dict[str, object] = {
    "webhook_allow_private": True,
    "webhook_timeout_seconds": 2,
    "webhook_retry_delays": "0.2,0.3,0.4",
    "webhooks_per_owner": 1000,
    "rate_limit": "",
}
WITHIN = 60.0


@dataclass
class Shop:
    """Notification processes, and the owner of some of their endpoints."""

    stack: Stack
    receiver: Receiver
    publisher: Publisher
    deliveries: Any

    async def ask(
        self, method: str, path: str, body: Any = None, status: int = 200, headers: Mapping[str, str] = CLIENT
    ) -> Any:
        url = f"{self.stack.url('notification')}{path}"
        answer = await self.stack.client.request(method, url, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        if status in (201, 202):
            location = f"{self.stack.url('notification')}{answer.headers['location']}"
            assert (await self.stack.client.get(location, headers=headers)).status_code == 200, location
        return answer.json() if answer.content else None

    async def register(self, path: str, *, headers: Mapping[str, str] = CLIENT, **changes: Any) -> dict[str, Any]:
        """Register an endpoint for the orders of this test, whose person is named like the first part of the path."""
        body = {"url": f"{self.receiver.url}{path}", "events": ["order.*"], "userId": path.split("/")[1], **changes}
        registered: dict[str, Any] = await self.ask("POST", "/webhooks", body, 201, headers)
        return registered

    async def listed(self, webhook_id: str, status: str | None = None) -> list[dict[str, Any]]:
        path = f"/webhooks/{webhook_id}/deliveries?limit=100" + (f"&status={status}" if status else "")
        items: list[dict[str, Any]] = (await self.ask("GET", path))["items"]
        return items

    async def arrived(self, path: str, number: int = 1, within: float = WITHIN) -> list[str]:
        """The different ids that have arrived, once there are as many."""
        await eventually(lambda: len(set(self.receiver.ids(path))) >= number, within, f"{number} events at {path}")
        return self.receiver.ids(path)

    async def has_failed(self, message: OrderConfirmed) -> None:
        failed = {"orderId": message.order_id, "status": "FAILED"}
        await eventually(lambda: self.deliveries.find_one(failed), WITHIN, "the delivery to fail")

    async def in_status(self, webhook_id: str, status: str, number: int = 1) -> list[dict[str, Any]]:
        async def all_there() -> bool:
            return len(await self.listed(webhook_id, status)) == number

        await eventually(all_there, WITHIN, f"{number} deliveries to be {status}")
        return await self.listed(webhook_id, status)


def confirmed(user: str, *, owner: str | None = OWNER) -> OrderConfirmed:
    order_id = secrets.token_hex(8)
    return OrderConfirmed(
        order_id=order_id,
        user_id=user,
        owner_id=owner,
        total_amount=1000,
        at=AT,
        order={"orderId": order_id, "status": "CONFIRMED", "totalAmount": 10},
    )


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    prefix = f"t{secrets.token_hex(8)}"
    key = Fernet.generate_key().decode()
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, **SETTINGS, webhook_key=key) as running:
        await running.start("notification", "notification")
        yield running
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


@pytest.fixture(scope="module")
async def shop(stack: Stack) -> AsyncIterator[Shop]:
    bus = RabbitBus(stack.amqp_url)
    await bus.start(None)
    async with run_receiver() as receiver, pymongo.AsyncMongoClient[Any](stack.mongodb_url, tz_aware=True) as client:
        database = client[f"{stack.database_prefix}_notifications"]
        yield Shop(stack, receiver, Publisher(bus), database["deliveries"])
        await database["endpoints"].delete_many({})  # a later attempt would find nothing that listens
    await bus.close()


@pytest.fixture
def user(unique_id: str) -> str:
    """The only person whose orders this test's endpoints hear of, so that it does not wait for those of others."""
    return unique_id


@pytest.fixture
def path(user: str) -> str:
    return f"/{user}"


async def test_an_event_arrives_with_the_order_and_a_signature(shop: Shop, path: str, user: str) -> None:
    endpoint = await shop.register(path)
    message = confirmed(user)
    await shop.publisher.send([message])
    await shop.arrived(path)
    (request,) = shop.receiver.to(path)
    assert request.is_signed_with(endpoint["secret"])
    assert request.headers["content-type"] == "application/json"
    assert request.content == {
        "type": "order.confirmed",
        "timestamp": "2026-01-31T09:30:00.000Z",
        "data": message.order,
    }
    (delivery,) = await shop.in_status(endpoint["id"], "DELIVERED")
    assert delivery["id"] == request.id
    assert delivery["lastAttempt"]["status"] == 204
    assert delivery["nextAttemptAt"] is None
    assert delivery["orderId"] == message.order_id


async def test_a_repeated_message_makes_no_second_event_but_a_second_failure_does(
    shop: Shop, path: str, user: str
) -> None:
    await shop.register(path, events=["order.failed"])
    failed: dict[str, Any] = {
        "order_id": secrets.token_hex(8),
        "user_id": user,
        "owner_id": OWNER,
        "total_amount": 1000,
    }
    first = OrderFailed(**failed, at=AT)
    for messages in ([first, first], [first], [OrderFailed(**failed, at=AT + timedelta(minutes=5))], [first]):
        await shop.publisher.send(messages)
    await shop.arrived(path, 2)
    last = confirmed(user)
    await shop.register(f"{path}/last", events=["order.confirmed"])
    await shop.publisher.send([last])
    await shop.arrived(f"{path}/last")
    assert set(Counter(shop.receiver.ids(path)).values()) == {1}


async def test_an_endpoint_hears_of_its_owner_its_person_and_its_events_only(shop: Shop, path: str, user: str) -> None:
    await shop.register(f"{path}/all", userId=None)
    await shop.register(f"{path}/failures", events=["order.failed", "order.cancelled"])
    await shop.register(f"{path}/second", userId=f"{user}2")
    await shop.register(f"{path}/theirs", headers=bearer(OTHER_CLIENT_KEY), events=["*"])
    await shop.register(f"{path}/staff", headers=ADMIN, events=["package.low_ips"])
    package = secrets.token_hex(4)
    await shop.publisher.send([confirmed(user), confirmed(f"{user}2"), PackageLowIps(package=package, ipv4=3)])
    await shop.publisher.send([confirmed(user, owner="another-shop"), confirmed(user, owner=None)])
    await shop.arrived(f"{path}/all", 2)
    await shop.arrived(f"{path}/second")
    await shop.arrived(f"{path}/theirs")
    await shop.arrived(f"{path}/staff")
    (low,) = shop.receiver.to(f"{path}/staff")
    assert low.content["data"] == {"package": package, "ipv4": 3}
    counts = {name: len(shop.receiver.to(f"{path}/{name}")) for name in ("all", "failures", "second", "theirs")}
    assert counts == {"all": 2, "failures": 0, "second": 1, "theirs": 1}


async def test_a_created_order_is_told_without_its_payment(shop: Shop, path: str, user: str) -> None:
    await shop.register(path, events=["order.created"])
    item = Item(product_id="p1", quantity=2, price=1999)
    message = OrderCreated(
        order_id=secrets.token_hex(8), user_id=user, owner_id=OWNER, items=(item,), total_amount=3998
    )
    await shop.publisher.send([message])
    await shop.arrived(path)
    data = shop.receiver.to(path)[0].content["data"]
    assert data["items"] == [{"productId": "p1", "quantity": 2, "price": 19.99}]
    assert data["totalAmount"] == 39.98
    assert "payment" not in data


async def test_failing_deliveries_climb_the_ladder_with_the_same_id_and_can_be_sent_again(
    shop: Shop, path: str, user: str
) -> None:
    shop.receiver.behaviour[path] = FAIL
    endpoint = await shop.register(path)
    await shop.publisher.send([confirmed(user)])
    (delivery,) = await shop.in_status(endpoint["id"], "FAILED")
    assert delivery["failureReason"] == "All 4 attempts failed"
    assert len(shop.receiver.ids(path)) >= 4
    assert set(shop.receiver.ids(path)) == {delivery["id"]}
    assert delivery["lastAttempt"]["body"] == "fail: try later"
    detail = await shop.ask("GET", f"/webhooks/{endpoint['id']}/deliveries/{delivery['id']}")
    assert [attempt["status"] for attempt in detail["history"]] == [500] * 4
    assert (await shop.ask("GET", f"/webhooks/{endpoint['id']}"))["failingSince"] is not None

    shop.receiver.behaviour[path] = OK
    await shop.ask("POST", f"/webhooks/{endpoint['id']}/deliveries/{delivery['id']}/redeliver", status=202)
    (again,) = await shop.in_status(endpoint["id"], "DELIVERED")
    assert again["id"] == delivery["id"]

    async def works_again() -> bool:
        return (await shop.ask("GET", f"/webhooks/{endpoint['id']}"))["failingSince"] is None

    await eventually(works_again, WITHIN, "the endpoint not to be failing any more")


async def test_all_that_failed_since_a_time_is_sent_again(shop: Shop, path: str, user: str) -> None:
    shop.receiver.behaviour[path] = RESET
    endpoint = await shop.register(path)
    await shop.publisher.send([confirmed(user) for _ in range(3)])
    failed = await shop.in_status(endpoint["id"], "FAILED", 3)
    assert all(each["lastAttempt"]["error"] and each["lastAttempt"]["status"] is None for each in failed)
    shop.receiver.behaviour[path] = OK
    newest = failed[0]["createdAt"]
    later = (datetime.fromisoformat(newest) + timedelta(milliseconds=1)).isoformat()
    route = f"/webhooks/{endpoint['id']}/redeliver"
    assert await shop.ask("POST", route, {"since": later}, 202) == {"redelivered": 0}
    assert await shop.ask("POST", route, {"since": failed[-1]["createdAt"]}, 202) == {"redelivered": 3}
    await shop.in_status(endpoint["id"], "DELIVERED", 3)


async def test_a_hanging_endpoint_delays_no_other_and_has_few_requests_at_once(
    shop: Shop, path: str, user: str
) -> None:
    shop.receiver.behaviour[f"{path}/dead"] = HANG
    await shop.register(f"{path}/dead")
    await shop.register(f"{path}/alive")
    for _ in range(3):
        await shop.publisher.send([confirmed(user) for _ in range(20)])
    await shop.arrived(f"{path}/alive", 60)
    assert len(set(shop.receiver.ids(f"{path}/dead"))) < 60, "they were delivered while the other one hung"
    assert shop.receiver.most_open[f"{path}/dead"] <= 2 * 10, "ten at once for each process"
    shop.receiver.behaviour[f"{path}/dead"] = OK
    await shop.arrived(f"{path}/dead", 60)


async def test_an_endpoint_that_answers_410_is_disabled_at_once(shop: Shop, path: str, user: str) -> None:
    shop.receiver.behaviour[path] = GONE
    endpoint = await shop.register(path)

    async def is_disabled() -> bool:
        return not (await shop.ask("GET", f"/webhooks/{endpoint['id']}"))["enabled"]

    disabled = sum(await counted_by_all(shop, "webhook_endpoints_disabled_total"))
    await shop.publisher.send([confirmed(user)])
    await eventually(is_disabled, WITHIN)

    async def is_counted() -> bool:
        return sum(await counted_by_all(shop, "webhook_endpoints_disabled_total")) == disabled + 1

    await eventually(is_counted, WITHIN, "the alert's metric to move")
    await shop.in_status(endpoint["id"], "FAILED")
    before = len(shop.receiver.to(path))
    await shop.publisher.send([confirmed(user)])
    failed = await shop.in_status(endpoint["id"], "FAILED", 2)
    assert failed[0]["failureReason"] == "The endpoint is disabled"
    assert len(shop.receiver.to(path)) == before
    assert (await shop.ask("GET", f"/webhooks/{endpoint['id']}"))["disabledReason"] == "It answered 410 Gone"
    await shop.ask("POST", f"/webhooks/{endpoint['id']}/test", status=409)

    shop.receiver.behaviour[path] = OK
    enabled = await shop.ask("PATCH", f"/webhooks/{endpoint['id']}", {"enabled": True})
    assert (enabled["disabledReason"], enabled["disabledAt"]) == (None, None)
    since = endpoint["createdAt"]
    assert await shop.ask("POST", f"/webhooks/{endpoint['id']}/redeliver", {"since": since}, 202) == {"redelivered": 2}
    await shop.in_status(endpoint["id"], "DELIVERED", 2)


async def test_an_endpoint_without_success_for_five_days_is_disabled(shop: Shop, path: str, user: str) -> None:
    shop.receiver.behaviour[path] = FAIL
    endpoint = await shop.register(path)
    endpoints = shop.deliveries.database["endpoints"]
    for age, enabled in ((timedelta(days=4, hours=23), True), (timedelta(days=5), False)):
        since = datetime.now(UTC) - age
        await endpoints.update_one({"_id": endpoint["id"]}, {"$set": {"failingSince": since}})
        message = confirmed(user)
        await shop.publisher.send([message])
        await shop.has_failed(message)
        found = await shop.ask("GET", f"/webhooks/{endpoint['id']}")
        assert found["enabled"] is enabled
    assert found["disabledReason"] == "No delivery succeeded for 5 days"


async def test_both_secrets_sign_after_a_rotation_and_neither_is_shown_again(shop: Shop, path: str, user: str) -> None:
    endpoint = await shop.register(path)
    rotated = await shop.ask("POST", f"/webhooks/{endpoint['id']}/rotate")
    assert rotated["secret"] != endpoint["secret"]
    delivery = await shop.ask("POST", f"/webhooks/{endpoint['id']}/test", status=202)
    assert (await shop.arrived(path)) == [delivery["id"]]
    (request,) = shop.receiver.to(path)
    assert request.content["type"] == "webhook.test"
    assert request.is_signed_with(endpoint["secret"])
    assert request.is_signed_with(rotated["secret"])
    assert "secret" not in await shop.ask("GET", f"/webhooks/{endpoint['id']}")
    stored = str(await shop.deliveries.database["endpoints"].find_one({"_id": endpoint["id"]}))
    assert endpoint["secret"] not in stored
    expired = datetime.now(UTC) - timedelta(seconds=1)
    change = {"$set": {"secrets.1.expiresAt": expired}}
    await shop.deliveries.database["endpoints"].update_one({"_id": endpoint["id"]}, change)
    await shop.ask("POST", f"/webhooks/{endpoint['id']}/test", status=202)
    await shop.arrived(path, 2)
    last = shop.receiver.to(path)[-1]
    assert last.is_signed_with(rotated["secret"])
    assert not last.is_signed_with(endpoint["secret"])


async def test_another_owners_webhook_does_not_exist_and_a_customer_has_none(shop: Shop, path: str, user: str) -> None:
    endpoint = await shop.register(path)
    delivery = await shop.ask("POST", f"/webhooks/{endpoint['id']}/test", status=202)
    one, other = f"/webhooks/{endpoint['id']}", bearer(OTHER_CLIENT_KEY)
    requests: Sequence[tuple[str, str, Any]] = (
        ("GET", one, None),
        ("PATCH", one, {"enabled": False}),
        ("DELETE", one, None),
        ("POST", f"{one}/rotate", None),
        ("POST", f"{one}/test", None),
        ("GET", f"{one}/deliveries", None),
        ("GET", f"{one}/deliveries/{delivery['id']}", None),
        ("POST", f"{one}/deliveries/{delivery['id']}/redeliver", None),
        ("POST", f"{one}/redeliver", {"since": "2026-01-01T00:00:00Z"}),
    )
    for method, route, body in requests:
        await shop.ask(method, route, body, 404, other)
        await shop.ask(method, route, body, 403, bearer(KEYS[Role.CUSTOMER]))
    body = {"url": f"{shop.receiver.url}{path}", "events": ["*"]}
    await shop.ask("POST", "/webhooks", body, 403, bearer(KEYS[Role.CUSTOMER]))
    await shop.ask("POST", "/webhooks", body, 403, bearer(KEYS[Role.VIEWER]))
    await shop.ask("GET", one, headers=bearer(KEYS[Role.VIEWER]))
    theirs = await shop.ask("GET", "/webhooks", headers=other)
    assert endpoint["id"] not in [each["id"] for each in theirs["items"]]

    await shop.ask("DELETE", one, status=204)
    await shop.ask("GET", one, status=404)
    assert await shop.deliveries.count_documents({"endpointId": endpoint["id"]}) == 0


async def test_what_cannot_be_registered_is_refused_with_the_field(shop: Shop) -> None:
    url = "https://shop.example/hook"
    for body, field in (
        ({"url": "ftp://shop.example", "events": ["*"]}, "url"),
        ({"url": "https://user:pass@shop.example/", "events": ["*"]}, "url"),
        ({"url": url, "events": []}, "events"),
        ({"url": url, "events": ["order.lost"]}, "events[0]"),
        ({"url": url, "events": ["stock.*"]}, "events[0]"),
        ({"url": url, "events": ["*"], "ownerId": "x"}, "ownerId"),
        ({"url": "https://shop..example", "events": ["*"]}, "url"),
    ):
        refused = await shop.ask("POST", "/webhooks", body, 422)
        assert [error["field"] for error in refused["errors"]] == [field]


async def test_an_event_that_is_asked_for_twice_is_kept_once(shop: Shop, path: str) -> None:
    twice = ["order.failed", "order.*", "order.failed"]
    endpoint = await shop.register(path, events=twice)
    assert endpoint["events"] == ["order.failed", "order.*"]
    changed = await shop.ask("PATCH", f"/webhooks/{endpoint['id']}", {"events": twice})
    assert changed["events"] == ["order.failed", "order.*"]


@pytest.mark.parametrize(
    "since", ["9999-12-31T23:59:59-12:00", "1999-12-31T00:00:00Z", "2026-01-31T09:30:00", 1_700_000_000, None]
)
async def test_what_failed_is_not_sent_again_since_a_time_that_is_none(shop: Shop, path: str, since: Any) -> None:
    endpoint = await shop.register(path)
    refused = await shop.ask("POST", f"/webhooks/{endpoint['id']}/redeliver", {"since": since}, 422)
    assert [error["field"] for error in refused["errors"]] == ["since"]


async def test_nothing_is_promised_without_the_key_that_signs_it(shop: Shop, path: str) -> None:
    endpoint = await shop.register(path)
    one = f"/webhooks/{endpoint['id']}"
    keyless = await shop.stack.launch("notification", webhook_key="")
    await shop.stack.ready(keyless)
    requests: Sequence[tuple[str, Any]] = (
        ("/webhooks", {"url": f"{shop.receiver.url}{path}", "events": ["*"]}),
        (f"{one}/rotate", None),
        (f"{one}/test", None),
        (f"{one}/redeliver", {"since": "2026-01-01T00:00:00Z"}),
        (f"{one}/deliveries/evt_1/redeliver", None),
    )
    for route, body in requests:
        answer = await shop.stack.client.post(f"{keyless.url}{route}", json=body, headers=CLIENT)
        assert answer.status_code == 503, route
        assert "ORDERSAGA_WEBHOOK_KEY" in answer.json()["detail"]
    await shop.stack.kill(keyless)


async def test_requests_at_the_same_moment_never_register_more_than_an_owner_may_have(shop: Shop, path: str) -> None:
    strict = await shop.stack.launch("notification", webhooks_per_owner=3)
    await shop.stack.ready(strict)
    owner = bearer(OTHER_CLIENT_KEY)
    for webhook in (await shop.ask("GET", "/webhooks", headers=owner))["items"]:
        await shop.ask("DELETE", f"/webhooks/{webhook['id']}", status=204, headers=owner)
    body = {"url": f"{shop.receiver.url}{path}", "events": ["order.failed"]}

    async def register() -> httpx.Response:
        return await shop.stack.client.post(f"{strict.url}/webhooks", json=body, headers=owner)

    async def registered(requests: int) -> Counter[int]:
        return Counter(each.status_code for each in await asyncio.gather(*(register() for _ in range(requests))))

    assert await registered(20) == {201: 3, 409: 17}
    theirs = (await shop.ask("GET", "/webhooks", headers=owner))["items"]
    assert len(theirs) == 3
    for webhook in theirs[:2]:
        await shop.ask("DELETE", f"/webhooks/{webhook['id']}", status=204, headers=owner)
    assert await registered(20) == {201: 2, 409: 18}
    refused = (await register()).json()
    assert refused["detail"] == "another-shop has 3 webhooks: delete one first"
    await shop.stack.kill(strict)


async def test_nothing_is_under_way_to_an_endpoint_whose_deletion_was_answered(
    shop: Shop, path: str, user: str
) -> None:
    shop.receiver.behaviour[path] = HANG
    endpoint = await shop.register(path)
    await shop.publisher.send([confirmed(user) for _ in range(60)])
    await shop.arrived(path)
    await shop.ask("DELETE", f"/webhooks/{endpoint['id']}", status=204)
    begun = len(shop.receiver.to(path))
    assert shop.receiver.open[path] == 0
    await shop.ask("DELETE", f"/webhooks/{endpoint['id']}", status=404)
    await nothing_is_left(shop, endpoint["id"])
    assert len(shop.receiver.to(path)) == begun


async def nothing_is_left(shop: Shop, webhook_id: str) -> None:
    """Wait until the endpoint's document, and that of each of its deliveries, is gone."""

    async def all_gone() -> bool:
        endpoint = await shop.deliveries.database["endpoints"].find_one({"_id": webhook_id})
        return endpoint is None and await shop.deliveries.find_one({"endpointId": webhook_id}) is None

    await eventually(all_gone, WITHIN, f"everything of {webhook_id} to be gone")


@pytest.mark.parametrize("point", [WEBHOOK_DELETED, WEBHOOK_DELETING])
async def test_the_deletion_of_an_endpoint_is_finished_by_others_when_its_process_is_killed(
    shop: Shop, path: str, user: str, point: str
) -> None:
    endpoint = await shop.register(path)
    await insert_failed(shop, endpoint["id"], 2500)
    one = f"/webhooks/{endpoint['id']}"
    doomed = await shop.stack.launch("notification", crash_at=point)
    await shop.stack.ready(doomed)
    with pytest.raises(httpx.TransportError):
        await shop.stack.client.delete(f"{doomed.url}{one}", headers=CLIENT)
    for method, route in (("GET", one), ("GET", f"{one}/deliveries"), ("GET", f"{one}/deliveries/evt_1")):
        await shop.ask(method, route, status=404)
    listed = await shop.ask("GET", "/webhooks?limit=100")
    assert endpoint["id"] not in [each["id"] for each in listed["items"]]
    await shop.publisher.send([confirmed(user)])
    await nothing_is_left(shop, endpoint["id"])
    assert shop.receiver.to(path) == []


async def insert_failed(shop: Shop, webhook_id: str, number: int) -> None:
    """Insert deliveries as many failures have left them."""
    now = datetime.now(UTC)
    common = {"endpointId": webhook_id, "type": "order.failed", "body": "{}", "ownerId": OWNER, "status": "FAILED"}
    times = {"createdAt": now, "expiresAt": now + timedelta(days=30), "tries": 10}
    await shop.deliveries.insert_many(
        {"_id": f"{webhook_id}:evt_{number}", "eventId": f"evt_{number}", **common, **times} for number in range(number)
    )


async def test_a_delivery_that_is_recorded_after_the_deletion_of_its_endpoint_is_deleted_too(shop: Shop) -> None:
    webhook_id = f"wh_{secrets.token_hex(8)}"
    await insert_failed(shop, webhook_id, 1)
    due = {"$set": {"status": "PENDING", "dueAt": datetime.now(UTC)}}
    await shop.deliveries.update_one({"endpointId": webhook_id}, due)
    await nothing_is_left(shop, webhook_id)


async def test_two_processes_share_the_work_and_the_death_of_one_loses_nothing(
    shop: Shop, path: str, user: str
) -> None:
    """A process dies at each point, while dozens of events are on their way."""
    await shop.register(path)
    points = (HANDLED, WEBHOOK_CLAIMED, f"{WEBHOOK_SENT}#5")
    doomed = [await shop.stack.launch("notification", crash_at=point) for point in points]
    await asyncio.gather(*(eventually(partial(has_begun, shop, process), WITHIN) for process in doomed))
    sent: list[OrderConfirmed] = []

    async def all_have_died() -> bool:
        batch = [confirmed(user) for _ in range(10)]
        await shop.publisher.send(batch)
        sent.extend(batch)
        return not any(process.alive for process in doomed)

    await eventually(all_have_died, WITHIN, "the processes to die")
    wanted = {message.order_id for message in sent}

    def missing() -> set[str]:
        return wanted - {each.content["data"]["orderId"] for each in shop.receiver.to(path)}

    await eventually(lambda: not missing(), WITHIN, "every event to arrive")
    shares = await counted_by_all(shop, "webhook_attempts_total")
    assert all(shares), "each process has delivered"
    ids = {each.content["data"]["orderId"]: each.id for each in shop.receiver.to(path)}
    assert all(ids[each.content["data"]["orderId"]] == each.id for each in shop.receiver.to(path)), "one id an event"

    async def nothing_pending() -> bool:
        return not await shop.deliveries.find_one({"status": "PENDING", "orderId": {"$in": sorted(wanted)}})

    # What a process delivered before it died is delivered once more when its claim ends.
    await eventually(nothing_pending, WITHIN, "all outcomes to be recorded")


async def has_begun(shop: Shop, process: Process) -> bool:
    """Whether it is ready, or has died of a delivery that an earlier test left."""
    return not process.alive or (await shop.stack.client.get(f"{process.url}/readyz")).status_code == 200


async def counted(client: httpx.AsyncClient, url: str, counter: str) -> float:
    """The counter of a process, over all its labels."""
    text = (await client.get(f"{url}/metrics")).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{counter}{{"))


async def counted_by_all(shop: Shop, counter: str) -> list[float]:
    return [await counted(shop.stack.client, each.url, counter) for each in shop.stack.processes("notification")]
