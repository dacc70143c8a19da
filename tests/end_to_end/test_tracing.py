"""One trace from the POST through every message to the final status, and logs that name the order and the message.

First the four services in one process over the in-memory bus, with the spans in memory; then real processes that send
their spans to a collector and write their logs as JSON.
"""

import asyncio
import contextlib
import gzip
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pymongo
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from shared import topology
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import StockReleased
from shared.failure_points import ORDER_INSERTED, SimulatedCrashError
from shared.spans import ORDER_ID, ORDER_STATUS
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.servers import Servers, delete_topology
from tests.support.shop import A_SERVER, Shop, open_shop
from tests.support.traces import Spans, attribute, linked, recording, span_id, trace_id

ABROAD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ABROAD, SPAN_ABROAD = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recording() as recorded:
        yield recorded


@pytest.fixture
async def shop(spans: Spans, mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    async with open_shop(mongodb_url, database_prefix) as opened:
        spans.clear()
        yield opened


def assert_one_trace(saga: Sequence[ReadableSpan], spans: Spans) -> int:
    """Check that all spans of an order form one connected trace; return the trace's id."""
    (trace,) = {trace_id(span) for span in saga}
    roots = [span for span in saga if spans.parent(span) is None]
    assert [span.name for span in roots] == ["POST /orders"]
    assert roots[0].kind is SpanKind.SERVER
    return trace


def saga_of(order_id: str, spans: Spans) -> list[ReadableSpan]:
    """Return all spans of the order except GET requests."""
    return [span for span in spans.of_order(order_id) if not span.name.startswith("GET")]


# --- In one process ---


async def test_a_whole_saga_is_one_trace_from_the_post_to_the_final_status(shop: Shop, spans: Spans) -> None:
    async with shop.all_running():
        order_id = await shop.place(**A_SERVER)
        assert (await shop.settled(order_id))["status"] == "COMPLETED"
    saga = saga_of(order_id, spans)
    trace = assert_one_trace(saga, spans)

    def one(name: str) -> ReadableSpan:
        return next(span for span in saga if span.name == name)

    created, last = "publish ordersaga:order.created", one("publish ordersaga:order.completed")
    for queue, answer in (
        (topology.INVENTORY_INBOX, "publish ordersaga:stock.reserved"),
        (topology.PAYMENT_INBOX, "publish ordersaga:payment.processed"),
    ):
        expected = ["POST /orders", created, f"process ordersaga:order.created:{queue}", answer]
        assert spans.path(one(answer)) == expected
    # The second of the two answers has continued the order.
    path = spans.path(last)
    assert path[-6:] == [
        f"process {path[-7].removeprefix('publish ')}:{topology.ORDER_INBOX}",
        "publish ordersaga:provisioning.requested",
        f"process ordersaga:provisioning.requested:{topology.PROVISIONING_INBOX}",
        "publish ordersaga:provisioning.completed",
        f"process ordersaga:provisioning.completed:{topology.ORDER_INBOX}",
        "publish ordersaga:order.completed",
    ]
    final = spans.parent(last)
    assert final is not None
    assert attribute(final, ORDER_STATUS) == "COMPLETED"
    assert {span.name for span in spans.all if trace_id(span) == trace} >= {
        "charge at the gateway",
        "buyvps at the provider",
        "run job",
    }


async def test_a_foreign_trace_context_is_continued_and_an_invalid_one_is_not(shop: Shop, spans: Spans) -> None:
    async with shop.all_running():
        continued, garbage = await shop.place(ABROAD), await shop.place("00-garbage")
        assert (await shop.settled(continued))["status"] == (await shop.settled(garbage))["status"] == "CONFIRMED"
    assert assert_one_trace(saga_of(continued, spans), spans) == TRACE_ABROAD
    (placed,) = (span for span in saga_of(continued, spans) if span.name == "POST /orders")
    assert placed.parent is not None
    assert placed.parent.span_id == SPAN_ABROAD
    assert assert_one_trace(saga_of(garbage, spans), spans) != TRACE_ABROAD


async def test_orders_that_are_handled_together_stay_in_their_own_traces(shop: Shop, spans: Spans) -> None:
    async with shop.running("order"):
        placed = await asyncio.gather(*(shop.place() for _ in range(12)))
    async with shop.all_running():  # all orders are waiting for them
        for order_id in placed:
            await shop.settled(order_id)
    traces = {assert_one_trace(saga_of(order_id, spans), spans) for order_id in placed}
    assert len(traces) == len(placed)
    batches = [span for span in spans.all if attribute(span, "messaging.batch.message_count")]
    assert batches
    assert all(span.parent is None and len(linked(span)) > 1 for span in batches)
    done_for_many = [span for span in spans.all if spans.parent(span) in batches]
    assert {attribute(span, "db.system.name") for span in done_for_many} == {"mongodb"}


async def test_an_operators_request_continues_the_orders_trace_and_is_linked_to_it(shop: Shop, spans: Spans) -> None:
    async with shop.running("order"):
        order_id = await shop.place()
        cancelled = await shop.ask("order", "POST", f"/orders/{order_id}/cancel", {"reason": "second thoughts"})
        assert cancelled["status"] == "CANCELLED"
        async with shop.all_running("inventory", "payment"):
            await shop.settled(order_id)
    saga = [span for span in saga_of(order_id, spans) if span.name != "POST /orders/{order_id}/cancel"]
    assert_one_trace(saga, spans)
    request, step = spans.one("POST /orders/{order_id}/cancel"), spans.one("order.cancel_requested")
    assert trace_id(request) != trace_id(step)
    assert linked(request) == {span_id(step)}
    assert linked(step) == {span_id(request)}
    assert attribute(step, ORDER_STATUS) == "CANCELLED"
    assert step in [spans.parent(span) for span in saga if span.name == "publish ordersaga:stock.release"]


async def test_messages_that_a_crash_left_unpublished_are_published_in_the_orders_trace(
    shop: Shop, spans: Spans
) -> None:
    def crash(point: str) -> None:
        if point == ORDER_INSERTED:
            raise SimulatedCrashError(point)

    async with shop.running("order", crash):
        order_id = await shop.place()
    assert not spans.named("publish ordersaga:order.created")
    async with shop.all_running():
        assert (await shop.settled(order_id))["status"] == "CONFIRMED"
    assert_one_trace(saga_of(order_id, spans), spans)


async def test_an_outcome_that_is_looked_up_later_appears_in_the_orders_trace(shop: Shop, spans: Spans) -> None:
    async with shop.all_running("order", "inventory", "payment"):
        order_id = await shop.place(payment={"token": "tok_timeout"})
        assert (await shop.settled(order_id))["status"] == "CONFIRMED"
    assert_one_trace(saga_of(order_id, spans), spans)
    first, later = spans.named("charge at the gateway")[0], spans.named("look_up at the gateway")[-1]
    assert first.status.status_code is StatusCode.ERROR
    assert later.status.status_code is StatusCode.UNSET
    assert spans.parent(first) is spans.parent(later)


async def test_an_order_that_times_out_ends_in_its_trace(shop: Shop, spans: Spans) -> None:
    shop.settings["saga_timeout_seconds"] = 0.2
    async with shop.running("order"):
        order_id = await shop.place()

        async def is_cancelled() -> bool:
            return bool((await shop.found(order_id))["status"] == "CANCELLED")

        await eventually(is_cancelled, 60)
        async with shop.all_running("inventory", "payment"):
            await shop.settled(order_id)
    assert_one_trace(saga_of(order_id, spans), spans)
    assert attribute(spans.one("order.deadline_passed"), ORDER_STATUS) == "CANCELLED"


# --- Separate processes ---


class Collector:
    """The HTTP part of an OTLP collector, which receives the spans."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        """Return the spans, each with the name of its service."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert head.startswith("post /v1/traces ")
                length = next(line for line in head.splitlines() if line.startswith("content-length:"))
                body = await reader.readexactly(int(length.partition(":")[2]))
                self._take(gzip.decompress(body) if "content-encoding: gzip" in head else body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    def _take(self, body: bytes) -> None:
        for sender in ExportTraceServiceRequest.FromString(body).resource_spans:
            (name,) = (a.value.string_value for a in sender.resource.attributes if a.key == "service.name")
            self.spans += [(name, span) for scope in sender.scope_spans for span in scope.spans]

    def of_order(self, order_id: str) -> list[tuple[str, Any]]:
        def is_about(span: Any) -> bool:
            return any(a.key == ORDER_ID and a.value.string_value == order_id for a in span.attributes)

        return [(service, span) for service, span in self.spans if is_about(span)]


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    collected = Collector()
    server = await asyncio.start_server(collected.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield collected, f"http://127.0.0.1:{port}"
    finally:
        server.close()


@pytest.fixture(scope="module")
async def stack(servers: Servers, collector: tuple[Collector, str]) -> AsyncIterator[Stack]:
    """Run processes with tracing and JSON logs at level DEBUG."""
    settings = {"tracing": "otlp", "log_format": "json", "log_level": "DEBUG"}
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[1])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, **settings) as running:
            await running.start()
            yield running
    await delete_topology(servers.amqp_url)
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        for name in ("orders", "inventory", "payments"):
            await client.drop_database(f"{prefix}_{name}")


async def test_processes_send_their_parts_of_one_trace_to_the_collector(
    stack: Stack, collector: tuple[Collector, str]
) -> None:
    await stack.stock("p1", 5)
    order_id = await stack.place()
    await stack.settled(order_id)

    def received() -> list[tuple[str, Any]]:
        return [span for span in collector[0].of_order(order_id) if not span[1].name.startswith("GET")]

    def all_have_sent() -> bool:  # processes send independently, so the last span may arrive first
        confirmed = ("order", "publish ordersaga:order.confirmed") in [
            (service, span.name) for service, span in received()
        ]
        return confirmed and {service for service, _ in received()} == {"order", "inventory", "payment"}

    await eventually(all_have_sent, 60, "the spans of all three services")
    assert len({span.trace_id for _, span in received()}) == 1


def lines_of(stack: Stack, service: str) -> list[dict[str, Any]]:
    (process,) = stack.processes(service)
    lines = [json.loads(line) for line in process.output]
    assert all(isinstance(line, dict) for line in lines)
    return lines


async def test_every_log_line_is_an_object_with_the_service_and_its_subject(stack: Stack) -> None:
    order_id, nonsense = await stack.place(), f"{secrets.token_hex(8)}"
    await stack.settled(order_id)
    poison = StockReleased(order_id=nonsense)  # an order that does not exist
    bus = RabbitBus(stack.amqp_url)
    await bus.start(None)
    await Publisher(bus).send([poison])
    await bus.close()

    def of_messages(service: str) -> list[dict[str, Any]]:
        return [line for line in lines_of(stack, service) if line["event"].startswith("message ")]

    def lines_of_order() -> list[dict[str, Any]]:
        return [line for line in lines_of(stack, "order") if line.get("path") == f"/orders/{order_id}"]

    def dead() -> list[dict[str, Any]]:
        return [line for line in of_messages("order") if line["event"] == "message dead-lettered"]

    def all_is_logged() -> bool:  # a service may log a step after its result is visible
        named = [{line["order_id"] for line in of_messages(name)} for name in ("order", "inventory", "payment")]
        return bool(lines_of_order()) and bool(dead()) and all(order_id in order_ids for order_ids in named)

    await eventually(all_is_logged, 60, "every service to log the order, and the poison to be dead-lettered")
    for service in ("order", "inventory", "payment"):
        lines = lines_of(stack, service)
        assert {line["service"] for line in lines} == {service}
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
        assert all(line["order_id"] and line["message_id"] for line in of_messages(service))
    assert all(line["order_id"] == order_id for line in lines_of_order())
    (letter,) = dead()
    assert (letter["order_id"], letter["level"], letter["error_type"]) == (nonsense, "error", "PoisonError")
    assert letter["trace_id"]
