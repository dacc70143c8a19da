"""Orders for servers over HTTP: what a client and an operator ask for while provisioning runs, fails, and runs again.

The order service's own parts over a real MongoDB, on a clock that the test moves; what it says goes to a broker in
memory, where the test reads it, and what provisioning would answer is given to its handlers.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from pymongo.read_concern import ReadConcern
from structlog.testing import capture_logs

from order_service.api import create_router
from order_service.following import Followers
from order_service.handlers import AnswerHandlers, PauseHandlers
from order_service.intake import Intake
from order_service.order_actions import OrderActions
from order_service.orders import COLLECTION, Orders
from order_service.outbox import Outbox
from order_service.placement import OrderPlacement
from order_service.refund_requests import RefundRequests
from order_service.saga import MAX_RUNS
from order_service.schema import SCHEMA
from order_service.sweeper import Sweeper
from order_service.waiting import WaitingRequests
from shared import contracts as c
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.contracts.inventory import ServerSpecification
from shared.contracts.provisioning import Server
from shared.database import Database
from shared.errors import BusUnavailableError, PoisonError
from shared.failpoints import ORDER_CREATED_PUBLISHED, ORDER_INSERTED, SimulatedCrashError
from shared.http import add_routes, create_app
from shared.pausing.pause import NEWS_WITHIN, running
from shared.pausing.records import PauseRecords
from shared.schema import prepare
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import TIMEOUTS, connected, order_body
from tests.support.eventually import eventually
from tests.support.tasks import end_tasks

SERVER = Server(ip="103.181.91.50", username="root", os="Debian 12", expires_at="2027-01-31")
NO_ADDRESS = "Package has no available IPs"


class OrderService:
    """One process of the order service; several over one database and one broker are several processes."""

    def __init__(self, database: Database, broker: MemoryBroker, bus: MemoryBus) -> None:
        self.broker = broker
        self.late = timedelta()
        self.began = utc_now()
        self.dies_at: str | None = None
        collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self.orders = Orders(collection)
        self.outbox = Outbox(
            self.orders,
            Publisher(bus),
            self.now,
            note_after=1,
            resend_after=TIMEOUTS.resend_after,
            failpoint=self._failpoint,
        )
        self.pauses = PauseRecords(database)
        self.sweeper = Sweeper(self.orders, self.outbox, self.pauses, TIMEOUTS, self.now, interval=1)
        self.handlers = AnswerHandlers(self.orders, TIMEOUTS, self.now)
        intake = Intake(self.orders, self.pauses, self.now, limit=None)
        placement = OrderPlacement(self.orders, self.outbox, TIMEOUTS, self.now, intake)
        app = create_app("order", "Orders", _nothing_is_down, authenticator=key_authenticator())
        actions = OrderActions(self.orders, self.outbox, TIMEOUTS, self.now)
        refunds = RefundRequests(self.orders, self.outbox, TIMEOUTS, self.now)
        waiting = WaitingRequests(self.orders, limit=10)
        add_routes(app.router, create_router(self.orders, placement, actions, refunds, waiting, Followers(self.orders)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN)

    def now(self) -> datetime:
        """Return the time, which passes only when a test moves it: a slow test must not make orders due."""
        return self.began + self.late

    def _failpoint(self, point: str) -> None:
        if point == self.dies_at:
            raise SimulatedCrashError(point)

    async def hears(self, *answers: c.OrderMessage) -> list[str]:
        """Handle answers, and return the routing keys of the messages to send."""
        return [message.routing_key for message in await self.handlers.advance_orders(answers)]

    async def order_in_provisioning(self) -> str:
        """Place an order for a server; it is reserved, paid and published."""
        response = await self.client.post("/orders", json=order_body())
        order_id: str = response.json()["orderId"]
        await self.outbox.drain()
        await self.is_reserved_and_paid(order_id)
        return order_id

    async def is_reserved_and_paid(self, order_id: str) -> None:
        specification = ServerSpecification(package="103.181.91", package_id="7", ram=2048)
        await self.hears(c.StockReserved(order_id=order_id, fulfilment="vps", provisioning=specification))
        await self.hears(c.PaymentProcessed(order_id=order_id, transaction_id="tx"))

    async def failed_order(self) -> str:
        order_id = await self.order_in_provisioning()
        assert await self.hears(failed(order_id, run=1)) == ["order.failed"]
        return order_id

    async def get(self, order_id: str) -> dict[str, Any]:
        order: dict[str, Any] = (await self.client.get(f"/orders/{order_id}")).json()
        return order

    async def asks(self, order_id: str, verb: str, **body: str) -> httpx.Response:
        return await self.client.post(f"/orders/{order_id}/{verb}", json=body or None)

    def said(self, inbox: str, order_id: str) -> list[dict[str, Any]]:
        """Return the messages about the order in an inbox, with their routing keys, in order, without repetitions."""
        found: list[dict[str, Any]] = []
        for envelope in self.broker.contents(inbox):
            message = {"key": envelope.routing_key, **json.loads(envelope.body)}
            if message["orderId"] == order_id and message not in found:
                found.append(message)
        return found

    def asked_of_provisioning(self, order_id: str) -> list[tuple[str, int]]:
        return [(message["key"], message["run"]) for message in self.said("provisioning.inbox", order_id)]


async def _nothing_is_down() -> dict[str, str]:
    return {}


def failed(order_id: str, run: int, reason: str = NO_ADDRESS) -> c.ProvisioningFailed:
    return c.ProvisioningFailed(order_id=order_id, reason=reason, retryable=True, run=run)


def said(order_id: str, sequence: int, message: str) -> c.ProvisioningProgress:
    return c.ProvisioningProgress(order_id=order_id, step="buy", attempt=1, message=message, sequence=sequence)


def completed(order_id: str) -> c.ProvisioningCompleted:
    return c.ProvisioningCompleted(order_id=order_id, server=SERVER)


def publish_failures() -> float:
    return REGISTRY.get_sample_value("ordersaga_publish_failures_total") or 0


def lines(order: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """The order's history from its provisioning on."""
    history = [(entry["event"], entry["status"], entry.get("message")) for entry in order["history"]]
    return history[3:]


def assert_conflict(response: httpx.Response, *words: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (409, "application/problem+json"), response.text
    for word in words:
        assert word in response.json()["detail"]


@asynccontextmanager
async def another_process(mongodb_url: str, name: str, broker: MemoryBroker) -> AsyncIterator[OrderService]:
    bus = MemoryBus(broker)
    await bus.start(None)
    async with connected(mongodb_url, name) as database:
        await prepare(database, SCHEMA)
        process = OrderService(database, broker, bus)
        async with process.client:
            yield process
            await process.outbox.drain()
    await bus.close()


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def service(mongodb_url: str, database_prefix: str) -> AsyncIterator[OrderService]:
    async with another_process(mongodb_url, f"{database_prefix}_orders", MemoryBroker()) as process:
        yield process


@pytest.fixture
async def successor(service: OrderService, mongodb_url: str, database_prefix: str) -> AsyncIterator[OrderService]:
    """The process that continues where `service` was killed."""
    async with another_process(mongodb_url, f"{database_prefix}_orders", service.broker) as process:
        process.began = service.began
        yield process


async def test_the_client_sees_the_server_and_how_it_came(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    requested = await service.get(order_id)
    assert (requested["status"], requested["provisioningStatus"], requested["server"]) == (
        "PROVISIONING",
        "REQUESTED",
        None,
    )
    words = [
        "Your server is being provisioned",
        "Waiting 2 minutes before attempt 2 of 3",
        "Your server is ready",
    ]
    for sequence, message in enumerate(words, start=1):
        await service.hears(said(order_id, sequence, message), said(order_id, sequence, message))
    assert (await service.get(order_id))["provisioningStatus"] == "IN_PROGRESS"
    assert await service.hears(completed(order_id)) == ["order.completed"]
    order = await service.get(order_id)
    assert order["status"] == order["provisioningStatus"] == "COMPLETED"
    assert order["server"] == {
        "ip": "103.181.91.50",
        "username": "root",
        "os": "Debian 12",
        "expiresAt": "2027-01-31",
    }
    assert order["settled"]
    assert order["completedAt"] == order["updatedAt"]
    assert order["failureReason"] is None
    assert lines(order) == [
        *(("provisioning.progress", "PROVISIONING", message) for message in words),
        ("provisioning.completed", "COMPLETED", None),
    ]
    assert await service.orders.due(service.now() + timedelta(days=365), 10) == []


async def test_a_subscriber_reads_the_same_history_until_the_order_is_settled(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    following = asyncio.create_task(service.client.get(f"/orders/{order_id}/events"))
    await service.hears(said(order_id, 1, "Your server is being provisioned"))
    await service.hears(failed(order_id, run=1))
    await service.asks(order_id, "retry")
    await service.hears(completed(order_id))
    _retry, *parts, last = (await following).text.strip().split("\n\n")
    assert last.startswith("event: settled\n")
    events = [part.splitlines() for part in parts]
    history = (await service.get(order_id))["history"]
    assert [json.loads(event[2].removeprefix("data: ")) for event in events] == history
    assert [event[1].removeprefix("event: ") for event in events[3:]] == [
        "provisioning.progress",
        "provisioning.failed",
        "order.retry_requested",
        "provisioning.completed",
    ]


async def test_a_retry_is_the_next_run_and_forgets_the_failure(service: OrderService) -> None:
    order_id = await service.failed_order()
    assert (await service.get(order_id))["failureReason"] == NO_ADDRESS
    response = await service.asks(order_id, "retry")
    assert response.status_code == 202
    order = response.json()
    assert (order["status"], order["provisioningStatus"], order["failureReason"], order["settled"]) == (
        "PROVISIONING",
        "REQUESTED",
        None,
        False,
    )
    await service.outbox.drain()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 2)]
    (request,) = service.said("provisioning.inbox", order_id)
    assert (request["package"], request["packageId"], request["ram"]) == ("103.181.91", "7", 2048)
    await service.hears(failed(order_id, run=2, reason="PROVISIONING BLOCKED: Wrong package assigned"))
    assert (await service.get(order_id))["failureReason"] == "PROVISIONING BLOCKED: Wrong package assigned"
    failures = (await service.client.get("/orders/failures")).json()["items"]
    assert failures == [
        {
            "count": 1,
            "status": "FAILED",
            "reason": "PROVISIONING BLOCKED: Wrong package assigned",
            "code": "provisioning_failed",
        }
    ]


async def test_the_failure_of_the_first_run_does_not_end_the_second(service: OrderService) -> None:
    order_id = await service.failed_order()
    await service.asks(order_id, "retry")
    before = await service.get(order_id)
    assert await service.hears(failed(order_id, run=1), failed(order_id, run=1)) == []
    assert await service.get(order_id) == before
    assert await service.hears(failed(order_id, run=2)) == ["order.failed"]
    assert await service.hears(failed(order_id, run=1)) == []
    assert await service.hears(failed(order_id, run=2)) == ["order.failed"], "this one may have been lost in a crash"
    assert len(lines(await service.get(order_id))) == 3


async def test_of_several_operators_who_click_at_once_one_succeeds_and_the_others_see_why_not(
    service: OrderService,
) -> None:
    order_id = await service.failed_order()
    responses = await asyncio.gather(*(service.asks(order_id, "retry") for _ in range(10)))
    refused = [response for response in responses if response.status_code != 202]
    assert len(refused) == 9
    for response in refused:
        assert_conflict(response, "PROVISIONING, in run 2", "cannot be retried")
    await service.outbox.drain()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 2)]
    assert_conflict(await service.asks(order_id, "refund"), "PROVISIONING, in run 2", "cannot be refunded")


@pytest.mark.parametrize("asked", [("retry", "refund"), ("retry", "hold"), ("refund", "hold")])
async def test_of_two_decisions_at_once_one_holds(service: OrderService, asked: tuple[str, str]) -> None:
    """Whichever wins, the money is either behind a server that is being bought or on its way back, never both."""
    for _ in range(10):
        order_id = await service.failed_order()
        service.late += TIMEOUTS.failed_hold if "hold" in asked else timedelta()

        async def decide(verb: str, order_id: str = order_id) -> int:
            if verb == "hold":
                return await service.sweeper.sweep_once()
            return (await service.asks(order_id, verb)).status_code

        await asyncio.gather(*(decide(verb) for verb in asked))
        await service.outbox.drain()
        order = await service.orders.document(order_id)
        assert order
        refunds = [message["key"] for message in service.said("payment.inbox", order_id)]
        retried = order["status"] == "PROVISIONING"
        assert ("payment.refund" in refunds) == order.get("compensating", False) == (not retried)
        assert service.asked_of_provisioning(order_id) == ([("provisioning.requested", 2)] if retried else [])


@pytest.mark.parametrize("dies_at", [ORDER_INSERTED, ORDER_CREATED_PUBLISHED])
async def test_a_retry_that_a_crash_left_behind_is_published_by_the_sweep(
    service: OrderService, successor: OrderService, dies_at: str
) -> None:
    order_id = await service.failed_order()
    service.dies_at = dies_at
    assert (await service.asks(order_id, "retry")).status_code == 202
    with pytest.raises(SimulatedCrashError):
        await service.outbox.publish([(await service.orders.load([order_id]))[order_id]])
    published_already = dies_at == ORDER_CREATED_PUBLISHED
    assert bool(service.asked_of_provisioning(order_id)) == published_already
    assert await successor.sweeper.sweep_once() == 0, "it is not overdue yet"
    successor.late = TIMEOUTS.republish_after
    assert await successor.sweeper.sweep_once() == 1
    assert successor.asked_of_provisioning(order_id) == [("provisioning.requested", 2)]
    await successor.outbox.drain()
    successor.late = timedelta(days=365)
    assert await successor.sweeper.sweep_once() == 0, "all is published, and a server may take its time"


async def test_a_retry_that_is_answered_before_it_is_noted_as_published_is_not_sent_again(
    service: OrderService,
) -> None:
    order_id = await service.failed_order()
    service.broker.stop()
    assert (await service.asks(order_id, "retry")).status_code == 202
    await service.hears(completed(order_id))
    service.late = timedelta(days=365)
    assert await service.sweeper.sweep_once() == 0
    service.broker.start()


async def test_a_refund_gives_everything_back_and_settles(service: OrderService) -> None:
    order_id = await service.failed_order()
    response = await service.asks(order_id, "refund")
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["settled"]) == ("FAILED", False)
    await service.outbox.drain()
    (refund,) = [m for m in service.said("payment.inbox", order_id) if m["key"] == "payment.refund"]
    assert refund["reason"] == NO_ADDRESS
    assert "stock.release" in [message["key"] for message in service.said("inventory.inbox", order_id)]
    assert_conflict(await service.asks(order_id, "retry"), "FAILED and being compensated")
    assert await service.hears(completed(order_id)) == [], "it is not paid for any more"
    await service.hears(c.StockReleased(order_id=order_id))
    await service.hears(c.PaymentRefunded(order_id=order_id, status="REFUNDED"))
    order = await service.get(order_id)
    assert (order["status"], order["settled"], order["server"]) == ("FAILED", True, None)
    assert (order["stockStatus"], order["paymentStatus"]) == ("RELEASED", "REFUNDED")
    assert order["failureReason"] == NO_ADDRESS
    for verb in ("retry", "refund", "cancel"):
        assert_conflict(await service.asks(order_id, verb), "FAILED and compensated")


async def test_the_hold_ends_by_itself_and_not_before(service: OrderService) -> None:
    order_id = await service.failed_order()
    service.late = TIMEOUTS.failed_hold - timedelta(minutes=1)
    assert await service.sweeper.sweep_once() == 0
    service.late = TIMEOUTS.failed_hold
    assert await service.sweeper.sweep_once() == 1
    await service.outbox.drain()
    assert "payment.refund" in [message["key"] for message in service.said("payment.inbox", order_id)]
    assert_conflict(await service.asks(order_id, "retry"), "FAILED and being compensated")
    await service.hears(c.StockReleased(order_id=order_id), c.PaymentRefunded(order_id=order_id, status="REFUNDED"))
    order = await service.get(order_id)
    assert (order["status"], order["settled"]) == ("FAILED", True)
    assert order["failureReason"] == NO_ADDRESS
    assert [event for event, _, _ in lines(order)] == [
        "provisioning.failed",
        "order.deadline_passed",
        "stock.released",
        "payment.refunded",
    ]


async def test_each_failure_has_its_own_hold_and_a_run_has_none(service: OrderService) -> None:
    order_id = await service.failed_order()
    await service.asks(order_id, "retry")
    await service.outbox.drain()
    service.late = 2 * TIMEOUTS.failed_hold
    assert await service.sweeper.sweep_once() == 0
    await service.hears(failed(order_id, run=2))
    service.late = 3 * TIMEOUTS.failed_hold - timedelta(minutes=1)
    assert await service.sweeper.sweep_once() == 0
    service.late = 3 * TIMEOUTS.failed_hold
    assert await service.sweeper.sweep_once() == 1


async def test_a_server_that_comes_during_the_hold_is_the_orders(service: OrderService) -> None:
    order_id = await service.failed_order()
    assert await service.hears(completed(order_id)) == ["order.completed"]
    order = await service.get(order_id)
    assert (order["status"], order["failureReason"], order["server"]["ip"]) == ("COMPLETED", None, SERVER.ip)
    service.late = 2 * TIMEOUTS.failed_hold
    assert await service.sweeper.sweep_once() == 0, "the hold is over with the failure"
    for verb in ("retry", "refund", "cancel"):
        assert_conflict(await service.asks(order_id, verb), "COMPLETED")


async def test_a_cancelled_run_that_fails_cancels_the_order(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    first, second = [await service.asks(order_id, "cancel", reason="changed my mind") for _ in range(2)]
    assert (first.status_code, first.json()["status"]) == (202, "PROVISIONING")
    assert (second.status_code, second.json()["history"]) == (202, first.json()["history"])
    assert lines(first.json()) == [("order.cancel_requested", "PROVISIONING", "changed my mind")]
    await service.outbox.drain()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 1), ("provisioning.cancel", 1)]
    assert await service.hears(failed(order_id, run=1, reason="Cancelled")) == [
        "order.cancelled",
        "stock.release",
        "payment.refund",
    ]
    assert_conflict(await service.asks(order_id, "retry"), "CANCELLED")
    await service.hears(c.StockReleased(order_id=order_id), c.PaymentRefunded(order_id=order_id, status="REFUNDED"))
    order = await service.get(order_id)
    assert (order["status"], order["settled"], order["failureReason"]) == ("CANCELLED", True, "Cancelled")
    assert order["cancelledAt"]
    for verb in ("retry", "refund", "cancel"):
        assert_conflict(await service.asks(order_id, verb), "CANCELLED")


async def test_a_cancellation_that_comes_after_the_purchase_leaves_the_server(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    assert (await service.asks(order_id, "cancel")).status_code == 202
    assert await service.hears(completed(order_id)) == ["order.completed"]
    order = await service.get(order_id)
    assert (order["status"], order["settled"], order["server"]["ip"]) == ("COMPLETED", True, SERVER.ip)
    assert (order["paymentStatus"], order["stockStatus"], order["failureReason"]) == ("PROCESSED", "RESERVED", None)


async def test_a_cancellation_of_a_retry_is_about_its_run(service: OrderService) -> None:
    order_id = await service.failed_order()
    assert_conflict(await service.asks(order_id, "cancel"), "FAILED, for an operator to retry or refund")
    await service.asks(order_id, "retry")
    await service.asks(order_id, "cancel")
    await service.outbox.drain()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 2), ("provisioning.cancel", 2)]
    assert await service.hears(failed(order_id, run=1, reason="Cancelled")) == []
    await service.hears(failed(order_id, run=2, reason="Cancelled"))
    assert (await service.get(order_id))["status"] == "CANCELLED"


async def test_a_cancellation_whose_process_dies_still_reaches_provisioning(
    service: OrderService, successor: OrderService
) -> None:
    order_id = await service.order_in_provisioning()
    service.dies_at = ORDER_INSERTED
    assert (await service.asks(order_id, "cancel")).status_code == 202
    await service.hears(said(order_id, 1, "Your server is being provisioned"))
    successor.late = TIMEOUTS.republish_after

    assert await successor.sweeper.sweep_once() == 1
    assert ("provisioning.cancel", 1) in successor.asked_of_provisioning(order_id)


async def test_the_run_and_what_was_said_survive_a_restart(service: OrderService, successor: OrderService) -> None:
    order_id = await service.failed_order()
    await service.asks(order_id, "retry")
    await service.hears(said(order_id, 5, "Waiting 3 minutes before attempt 3 of 3"))
    assert await successor.hears(failed(order_id, run=1)) == []
    await successor.hears(said(order_id, 5, "once more"), said(order_id, 4, "late"), said(order_id, 6, "new"))
    spoken = [words for event, _, words in lines(await successor.get(order_id)) if event == "provisioning.progress"]
    assert spoken == ["Waiting 3 minutes before attempt 3 of 3", "new"]


async def test_an_order_stored_before_runs_were_counted_is_in_its_first(
    service: OrderService, mongodb_url: str, database_prefix: str
) -> None:
    order_id = await service.order_in_provisioning()
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        await database[COLLECTION].update_one({"_id": order_id}, {"$unset": {"provisioningRun": ""}})
    await service.hears(c.ProvisioningFailed(order_id=order_id, reason=NO_ADDRESS))
    await service.asks(order_id, "retry")
    await service.outbox.drain()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 2)]


async def test_a_lost_request_for_a_server_is_sent_again_until_it_is_answered(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    assert service.said("provisioning.inbox", order_id) == [], "the handler's answer was lost before it was published"
    assert await service.sweeper.resend() == 0, "there is still time for an answer"
    for minutes in (0.5, 1, 2, 4, 8, 16):
        service.late = timedelta(minutes=minutes)
        assert await service.sweeper.resend() == 1
        assert await service.sweeper.resend() == 0
        assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 1)]
        service.broker.lose_data()
    await service.asks(order_id, "cancel")
    await service.outbox.drain()
    service.broker.lose_data()
    service.late += TIMEOUTS.resend_after
    assert await service.sweeper.resend() == 1
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 1), ("provisioning.cancel", 1)]
    assert await service.hears(completed(order_id)) == ["order.completed"]
    service.late = timedelta(days=365)
    assert await service.sweeper.resend() == 0


async def test_pauses_are_noted_whatever_the_order_of_their_messages(service: OrderService) -> None:
    note = PauseHandlers(service.pauses, service.now).note_pauses
    at, later = service.now(), service.now() + timedelta(seconds=1)
    paused = c.ConsumerPausesChanged(service="payment", changed_at=at, pauses=(c.PauseTimes(since=at),))
    resumed = paused.model_copy(
        update={"changed_at": later, "pauses": (c.PauseTimes(since=at, until=None, ended_at=later),)}
    )
    for message in (resumed, paused, resumed):
        assert await note([message]) == ()
        (known,) = await service.pauses.all()
        assert (known.service, running(known.pauses, later)) == ("payment", None)
    with pytest.raises(PoisonError, match="answers no order"):
        await note([paused.model_copy(update={"service": "order"})])


async def test_a_pause_without_news_is_over_and_an_outage_of_the_broker_is_no_silence(service: OrderService) -> None:
    note = PauseHandlers(service.pauses, service.now).note_pauses
    paused = c.ConsumerPausesChanged(
        service="provisioning", changed_at=service.now(), pauses=(c.PauseTimes(since=service.now()),)
    )
    order_id = await service.order_in_provisioning()
    await note([paused])
    service.late = NEWS_WITHIN
    await note([paused])
    service.late += NEWS_WITHIN
    await service.sweeper.sweep()
    assert service.asked_of_provisioning(order_id) == []
    service.broker.stop()
    service.late += timedelta(days=1)
    await service.sweeper.sweep()
    service.broker.start()
    await service.sweeper.sweep()
    assert service.asked_of_provisioning(order_id) == []
    service.late += timedelta(days=1)
    await service.sweeper.sweep()
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 1)]


async def test_a_request_is_not_repeated_while_provisioning_is_paused(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    await service.pauses.begin("provisioning", service.now(), by="ann", reason="a test", until=None)
    service.late = TIMEOUTS.resend_after
    assert await service.sweeper.resend() == 1
    assert service.asked_of_provisioning(order_id) == []
    await service.pauses.end("provisioning", service.now())
    service.late *= 2
    assert await service.sweeper.resend() == 1
    assert service.asked_of_provisioning(order_id) == [("provisioning.requested", 1)]


async def test_an_order_that_was_not_published_before_a_pause_took_its_time_is_published_after_it(
    service: OrderService,
) -> None:
    service.dies_at = ORDER_INSERTED
    order_id = (await service.client.post("/orders", json=order_body())).json()["orderId"]
    await service.outbox.drain()
    assert not service.said("inventory.inbox", order_id)
    service.dies_at = None
    await service.pauses.begin("payment", service.now(), by="ann", reason="a test", until=None)
    service.late = TIMEOUTS.saga_timeout + timedelta(seconds=1)
    service.broker.stop()
    with pytest.raises(BusUnavailableError):  # after the deadline is extended
        await service.sweeper.sweep_once()
    service.broker.start()
    await service.sweeper.sweep_once()
    assert [message["key"] for message in service.said("inventory.inbox", order_id)] == ["order.created"]
    order = (await service.orders.load([order_id]))[order_id]
    assert (order.status, order.unpublished) == ("PENDING", False)
    assert order.due_at == order.deadline > service.now()


@pytest.mark.parametrize("ended_by", ["cancel", "refund", "hold"])
async def test_a_lost_compensation_is_sent_again_until_it_is_answered(service: OrderService, ended_by: str) -> None:
    order_id = await service.failed_order()
    if ended_by == "cancel":
        await service.asks(order_id, "retry")
        await service.asks(order_id, "cancel")
        await service.hears(failed(order_id, run=2))
    elif ended_by == "refund":
        await service.asks(order_id, "refund")
    else:
        service.late = TIMEOUTS.failed_hold
        assert await service.sweeper.sweep_once() == 1
    await service.outbox.drain()
    service.broker.lose_data()
    service.late += TIMEOUTS.resend_after
    assert await service.sweeper.resend() == 1
    (refund,) = service.said("payment.inbox", order_id)
    (release,) = service.said("inventory.inbox", order_id)
    assert (refund["key"], release["key"]) == ("payment.refund", "stock.release")
    await service.hears(c.StockReleased(order_id=order_id))
    service.broker.lose_data()
    service.late += 2 * TIMEOUTS.resend_after
    assert await service.sweeper.resend() == 1
    assert [message["key"] for message in service.said("payment.inbox", order_id)] == ["payment.refund"]
    assert service.said("inventory.inbox", order_id) == [], "that has been answered"
    await service.hears(c.PaymentRefunded(order_id=order_id, status="REFUNDED"))
    assert (await service.get(order_id))["settled"]
    service.late = timedelta(days=365)
    assert await service.sweeper.resend() == 0


async def test_an_order_that_cannot_be_put_into_messages_holds_up_no_other(
    service: OrderService, mongodb_url: str, database_prefix: str
) -> None:
    spoiled, other = await service.order_in_provisioning(), await service.order_in_provisioning()
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        await database[COLLECTION].update_one({"_id": spoiled}, {"$unset": {"provisioning": ""}})
    service.late = TIMEOUTS.resend_after
    assert await service.sweeper.resend() == 2
    assert service.asked_of_provisioning(other) == [("provisioning.requested", 1)]
    assert await service.sweeper.resend() == 0, "both are sent again only after a pause"


async def test_the_money_of_a_failed_order_is_left_to_its_hold(service: OrderService) -> None:
    await service.failed_order()
    service.late = TIMEOUTS.failed_hold - timedelta(minutes=1)
    assert await service.sweeper.resend() == 0


@pytest.mark.parametrize("verb", ["cancel", "refund"])
async def test_a_repeated_request_sends_an_unanswered_compensation_again(service: OrderService, verb: str) -> None:
    order_id = await service.failed_order()
    await service.asks(order_id, "refund")
    await service.outbox.drain()
    service.broker.lose_data()
    before = await service.get(order_id)
    answers = await asyncio.gather(*(service.asks(order_id, verb) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [202] * 5
    assert await service.get(order_id) == before, "no line of history, and nothing else that a client sees"
    await service.outbox.drain()
    assert "payment.refund" in [message["key"] for message in service.said("payment.inbox", order_id)]
    assert "stock.release" in [message["key"] for message in service.said("inventory.inbox", order_id)]


async def test_a_process_without_a_broker_takes_no_order_from_its_neighbour(
    service: OrderService, mongodb_url: str, database_prefix: str
) -> None:
    """What one process cannot publish is the neighbour's at once: new orders, commands, orders whose time is over."""
    late = (await service.client.post("/orders", json=order_body())).json()["orderId"]
    await service.outbox.drain()
    service.late = TIMEOUTS.saga_timeout - TIMEOUTS.resend_after
    provisioning = await service.order_in_provisioning()
    service.late += TIMEOUTS.resend_after
    service.broker.stop()
    new = (await service.client.post("/orders", json=order_body())).json()["orderId"]
    await service.outbox.drain()
    assert not await service.sweeper.sweep()
    assert (await service.get(late))["status"] == "PENDING"
    for work in (service.sweeper.sweep_once, service.sweeper.resend):  # the broker is lost in the middle of the sweep
        with pytest.raises(BusUnavailableError):
            await work()
    async with another_process(mongodb_url, f"{database_prefix}_orders", MemoryBroker()) as neighbour:
        neighbour.began, neighbour.late = service.began, service.late
        await neighbour.sweeper.sweep()
        assert [message["key"] for message in neighbour.said("payment.inbox", new)] == ["order.created"]
        assert neighbour.asked_of_provisioning(provisioning) == [("provisioning.requested", 1)]
        assert [message["key"] for message in neighbour.said("inventory.inbox", late)] == ["stock.release"]


async def test_during_an_outage_of_the_broker_the_sweep_waits_and_continues_after_it(service: OrderService) -> None:
    order_id = await service.order_in_provisioning()
    service.late = TIMEOUTS.resend_after
    service.broker.stop()
    with capture_logs() as logs:
        loop = asyncio.create_task(service.sweeper.run())
        await asyncio.wait({loop}, timeout=0.2)
        assert service.asked_of_provisioning(order_id) == []
        service.broker.start()
        await eventually(lambda: bool(service.asked_of_provisioning(order_id)), within=30)
        await eventually(lambda: bool(logs), within=30)
    assert [log["event"] for log in logs] == ["sent unanswered commands again"]
    await end_tasks(loop)


async def test_a_failed_order_has_a_limited_number_of_retries_and_says_so(service: OrderService) -> None:
    order_id = await service.failed_order()
    for run in range(2, MAX_RUNS + 1):
        assert (await service.asks(order_id, "retry")).status_code == 202
        await service.hears(failed(order_id, run))
    assert_conflict(await service.asks(order_id, "retry"), "FAILED after 20 runs, the most", "it can be refunded")
    assert (await service.asks(order_id, "refund")).status_code == 202
