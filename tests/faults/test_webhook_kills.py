"""The notification service is killed again and again while it delivers to receivers that misbehave: nothing is lost.

`make test-webhooks` runs the long form, with 1,000 events and twenty kills.
"""

import contextlib
import logging
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pymongo
import pytest
from cryptography.fernet import Fernet
from standardwebhooks import Webhook, WebhookVerificationError

from shared.access.permissions import Role
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import OrderConfirmed
from tests.support.access import KEYS, OWNER, bearer
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.servers import Servers, delete_topology, drop_databases
from tests.support.shop_receivers import (
    ELSEWHERE,
    FAIL,
    GONE,
    HANG,
    OK,
    REDIRECT,
    RESET,
    SLOW,
    Received,
    Receiver,
    run_receiver,
)

EVENTS = int(os.environ.get("WEBHOOK_EVENTS", "40"))
KILLS = max(2, EVENTS // 50)
PER_KILL = EVENTS // KILLS
WITHIN = 60.0 + EVENTS
MISBEHAVES_EVERY = 20
"""A receiver misbehaves at the first attempts of every twentieth event, as each of those takes seconds."""
KINDS = (OK, FAIL, HANG, REDIRECT, RESET, SLOW, GONE)
"""There is an endpoint of each kind, which gets every event."""
SETTINGS: dict[str, object] = {
    "webhook_allow_private": True,
    "webhook_timeout_seconds": 4,
    "webhook_retry_delays": ",".join(["0.2"] * 50),
    "rate_limit": "",
}
CLIENT = bearer(KEYS[Role.CLIENT])

_log = logging.getLogger(__name__)


@dataclass
class UnreliableReceiver(Receiver):
    """Misbehaves as the path says when an event comes the first time, and answers 410 once."""

    secrets: dict[str, str] = field(default_factory=dict)
    """By path."""
    accepted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By path, the orders whose events it has taken."""
    unsigned: list[Received] = field(default_factory=list)
    gone: Received | None = None
    _first: dict[tuple[str, str], Received] = field(default_factory=dict)

    def behaviour_for(self, request: Received) -> str:
        kind, order_id = request.path.strip("/"), request.content["data"]["orderId"]
        if not self._is_signed(request):
            self.unsigned.append(request)
            return FAIL
        if kind == GONE:
            self.gone = self.gone or request
            behaviour = GONE if self.gone is request else OK
        else:
            is_first = self._first.setdefault((kind, request.id), request) is request
            misbehaves = is_first and int(order_id.rpartition("-")[2]) % MISBEHAVES_EVERY == 0
            behaviour = kind if misbehaves else OK
        if behaviour in (OK, SLOW):
            self.accepted[request.path].add(order_id)
        return behaviour

    def _is_signed(self, request: Received) -> bool:
        """Whether the signature is right, for the library and by hand."""
        secret = self.secrets[request.path]
        with contextlib.suppress(WebhookVerificationError):
            Webhook(secret).verify(request.body, request.headers)
            return request.is_signed_with(secret)
        return False

    async def has_taken(self, path: str, orders: set[str]) -> None:
        """Wait until the events of these orders are taken at a path."""

        def is_over() -> bool:
            return orders <= self.accepted[path] or bool(self.unsigned)

        await eventually(is_over, WITHIN, f"every event at {path}")
        assert not self.unsigned


@pytest.fixture
async def stack(servers: Servers, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Stack]:
    caplog.set_level(logging.WARNING, "httpx")
    prefix = f"t{secrets.token_hex(8)}"
    key = Fernet.generate_key().decode()
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, **SETTINGS, webhook_key=key) as running:
        await running.start("notification")
        yield running
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


async def ask(stack: Stack, method: str, path: str, body: Any, status: int) -> dict[str, Any]:
    answer = await stack.client.request(method, f"{stack.url('notification')}{path}", json=body, headers=CLIENT)
    assert answer.status_code == status, answer.text
    answered: dict[str, Any] = answer.json()
    return answered


async def register(stack: Stack, receiver: UnreliableReceiver) -> dict[str, str]:
    """Register an endpoint of each kind; return their ids by path."""
    ids: dict[str, str] = {}
    for path in (f"/{kind}" for kind in KINDS):
        endpoint = await ask(stack, "POST", "/webhooks", {"url": f"{receiver.url}{path}", "events": ["order.*"]}, 201)
        ids[path], receiver.secrets[path] = endpoint["id"], endpoint["secret"]
    return ids


def confirmed(order_id: str) -> OrderConfirmed:
    order = {"orderId": order_id, "status": "CONFIRMED", "totalAmount": 10}
    return OrderConfirmed(
        order_id=order_id, user_id="u1", owner_id=OWNER, total_amount=1000, at=datetime.now(UTC), order=order
    )


def has_received(receiver: Receiver, number: int) -> bool:
    return len(receiver.received) >= number


async def publish_and_kill(stack: Stack, receiver: Receiver, publisher: Publisher) -> set[str]:
    """Publish events in portions, and kill the service while it delivers each; return the ids of the orders."""
    orders: set[str] = set()
    for kill in range(KILLS):
        ids = [f"{secrets.token_hex(4)}-{kill * PER_KILL + number}" for number in range(PER_KILL)]
        before = len(receiver.received)
        await publisher.send([confirmed(order_id) for order_id in ids])
        orders.update(ids)
        await eventually(partial(has_received, receiver, before + 10), WITHIN, "deliveries")
        (process,) = stack.processes("notification")
        await stack.kill(process)
        await stack.start("notification")
    return orders


async def test_no_event_is_lost_when_the_service_is_killed_and_receivers_misbehave(
    stack: Stack, servers: Servers
) -> None:
    receiver = UnreliableReceiver()
    bus = RabbitBus(servers.amqp_url)
    await bus.start(None)
    async with run_receiver(receiver), pymongo.AsyncMongoClient[Any](servers.mongodb_url) as client:
        endpoints = await register(stack, receiver)
        began = datetime.now(UTC)
        orders = await publish_and_kill(stack, receiver, Publisher(bus))

        for path in set(endpoints) - {f"/{GONE}"}:
            await receiver.has_taken(path, orders)

        gone = f"/webhooks/{endpoints[f'/{GONE}']}"
        assert (await ask(stack, "PATCH", gone, {"enabled": True}, 200))["enabled"]
        await ask(stack, "POST", f"{gone}/redeliver", {"since": began.isoformat()}, 202)
        await receiver.has_taken(f"/{GONE}", orders)

        deliveries = client[f"{stack.database_prefix}_notifications"]["deliveries"]

        async def all_are_recorded() -> bool:
            return await deliveries.count_documents({"status": "DELIVERED"}) == len(orders) * len(KINDS)

        await eventually(all_are_recorded, WITHIN, "all outcomes to be recorded")
        seconds = (datetime.now(UTC) - began).total_seconds()
    await bus.close()
    assert len(orders) == EVENTS
    assert not receiver.to(ELSEWHERE), "no redirect is followed"
    ids = {(each.path, each.id, each.content["data"]["orderId"]) for each in receiver.received}
    assert len(ids) == len(orders) * len(KINDS), "each event has one id at each endpoint"
    attempts = Counter(each.path for each in receiver.received)
    _log.info("%d events, %d kills, %.0f s; requests by endpoint: %s", EVENTS, KILLS, seconds, dict(attempts))
