"""Tracing: messages and requests continue a trace, garbage begins a new one, and nothing happens while it is off."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.trace import StatusCode
from starlette.responses import Response
from structlog.testing import capture_logs

from shared import topology, tracing
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.bus import Envelope, Handler
from shared.bus.consumer import Consumer
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.contracts import Message, PaymentRefunded, RefundPayment
from shared.errors import PoisonError, StartError
from shared.group_commit import GroupCommit
from shared.http import add_routes, create_app, new_router
from shared.spans import ORDER_ID, ORDER_STATUS
from shared.tracing import configure_tracing
from tests.support.access import ADMIN, key_authenticator
from tests.support.eventually import eventually
from tests.support.traces import Spans, attribute, linked, recording, span_id, trace_id

INBOX = topology.PAYMENT_INBOX
ABROAD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ABROAD, SPAN_ABROAD = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PUBLISH, PROCESS = "publish ordersaga:payment.refund", f"process ordersaga:payment.refund:{INBOX}"
ANSWER = "publish ordersaga:payment.refunded"
GARBAGE = (
    "",
    "garbage",
    "00-0af7651916cd43dd8448eb211c80319c",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
    "00-" + "a" * 5000,
)


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recording() as recorded:
        yield recorded


async def refunded(requests: Sequence[RefundPayment]) -> Sequence[Message]:
    for request in requests:
        tracing.note(request.order_id, "REFUNDED")
    return [PaymentRefunded(order_id=request.order_id, status="REFUNDED") for request in requests]


async def handle(broker: MemoryBroker, *, until: int, handler: Handler = refunded) -> None:
    """Let a consumer handle the inbox until this many messages have been published."""
    bus = MemoryBus(broker)
    await bus.start(INBOX)
    consumer = Consumer(bus, INBOX, {RefundPayment: handler})
    running = asyncio.create_task(consumer.run())

    def all_out() -> bool:
        broker.advance(150)  # any level of the retry ladder
        return not bus.unacknowledged and sum(map(len, map(broker.contents, OUT))) >= until

    await eventually(all_out, 60)
    await consumer.stop()
    await running
    await bus.close()


OUT = (topology.ORDER_INBOX, topology.DEAD_LETTERS)


async def placed(*order_ids: str, traceparents: Any = None) -> MemoryBroker:
    """A broker with a request for every order."""
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    await bus.start(None)
    await Publisher(bus).send([RefundPayment(order_id=order_id) for order_id in order_ids], traceparents or {})
    return broker


# --- Messages. ---


async def test_what_follows_from_a_message_is_a_child_of_handling_it(spans: Spans) -> None:
    broker = await placed("o1", traceparents={"o1": ABROAD})
    await handle(broker, until=1)
    answer = spans.one(ANSWER)
    assert spans.path(answer) == [PUBLISH, PROCESS, ANSWER]
    assert {trace_id(span) for span in spans.all} == {TRACE_ABROAD}
    parent = spans.one(PUBLISH).parent
    assert parent is not None
    assert parent.span_id == SPAN_ABROAD
    (sent,) = broker.contents(topology.ORDER_INBOX)
    assert sent.headers["traceparent"] == f"00-{trace_id(answer):032x}-{span_id(answer):016x}-01"
    handled = spans.one(PROCESS)
    assert attribute(handled, ORDER_ID) == attribute(handled, "messaging.message.conversation_id") == "o1"
    assert attribute(handled, ORDER_STATUS) == "REFUNDED"
    assert attribute(handled, "messaging.message.id") == attribute(spans.one(PUBLISH), "messaging.message.id")


async def test_in_a_batch_every_order_stays_in_its_own_trace(spans: Spans) -> None:
    orders = [f"o{number}" for number in range(5)]
    await handle(await placed(*orders), until=len(orders))
    assert len({trace_id(span) for span in spans.named(PUBLISH)}) == len(orders)
    for order_id in orders:
        of_order = spans.of_order(order_id)
        assert len({trace_id(span) for span in of_order}) == 1
        (answer,) = (span for span in of_order if span.name == ANSWER)
        assert spans.path(answer) == [PUBLISH, PROCESS, ANSWER]


async def test_the_span_of_a_batch_and_those_of_its_messages_link_to_each_other(spans: Spans) -> None:
    await handle(await placed("o1", "o2", "o3"), until=3)
    whole = spans.one(f"process {INBOX}")
    assert whole.parent is None
    assert attribute(whole, "messaging.batch.message_count") == 3
    assert linked(whole) == {span_id(span) for span in spans.named(PUBLISH)}
    assert all(linked(span) == {span_id(whole)} for span in spans.named(PROCESS))


async def test_of_two_messages_about_an_order_the_last_is_continued(spans: Spans) -> None:
    await handle(await placed("o1", "o1"), until=2)
    first, last = spans.named(PROCESS)
    assert {span.parent.span_id for span in spans.named(ANSWER) if span.parent} == {span_id(last)} != {span_id(first)}


async def test_a_retry_and_the_dead_letter_behind_it_continue_from_the_attempt_that_failed(spans: Spans) -> None:
    async def fails(requests: Sequence[RefundPayment]) -> Sequence[Message]:
        raise RuntimeError("out of order")

    broker = await placed("o1")
    await handle(broker, until=1, handler=fails)
    (letter,) = broker.contents(topology.DEAD_LETTERS)
    (dead,) = (span for span in spans.all if span.name == f"publish {topology.DEAD_LETTERS}:payment.refund")
    assert letter.headers["traceparent"].split("-")[2] == f"{span_id(dead):016x}"
    retries = len(topology.RETRY_LADDER)
    path = spans.path(dead)
    assert [name.split()[0] for name in path] == ["publish", *(["process", "publish"] * (retries + 1))]
    attempts = [span for span in spans.all if span.name.startswith("process")]
    assert len(attempts) == retries + 1
    assert {attribute(span, "error.type") for span in attempts} == {"RuntimeError"}
    assert {span.status.status_code for span in attempts} == {StatusCode.ERROR}


async def test_in_a_batch_only_the_failed_message_is_marked_as_failed(spans: Spans) -> None:
    async def refuses_o2(requests: Sequence[RefundPayment]) -> Sequence[Message]:
        if any(request.order_id == "o2" for request in requests):
            raise PoisonError("no such order")
        return await refunded(requests)

    await handle(await placed("o1", "o2", "o3"), until=3, handler=refuses_o2)
    failed = [span for span in spans.all if span.status.status_code is StatusCode.ERROR]
    assert [(span.name, attribute(span, ORDER_ID)) for span in failed] == [(PROCESS, "o2")]


@pytest.mark.parametrize("header", [*GARBAGE, 7, None, b"\xff", ["00"]], ids=range(len(GARBAGE) + 4))
async def test_a_message_with_a_garbage_header_is_handled_in_a_new_trace(spans: Spans, header: Any) -> None:
    broker = MemoryBroker()
    body = RefundPayment(order_id="o1").to_json()
    broker.publish(Envelope(body, "", INBOX, "payment.refund", "o1", "m1", headers={"traceparent": header}))
    await handle(broker, until=1)
    (handled,) = (span for span in spans.all if span.name.startswith("process"))
    assert handled.parent is None
    assert spans.parent(spans.one(ANSWER)) is handled


async def test_an_unknown_message_type_is_not_used_as_a_span_name(spans: Spans) -> None:
    broker = MemoryBroker()
    broker.publish(Envelope(b"{}", "", INBOX, "invented-by-a-sender", "", ""))
    await handle(broker, until=1)
    attempts = spans.named(f"process {INBOX}")
    assert {span.status.status_code for span in attempts} == {StatusCode.ERROR}


async def test_a_failed_publication_is_traced_and_repeated_under_the_same_parent(spans: Spans) -> None:
    broker = await placed("o1")
    bus = MemoryBus(broker)
    await bus.start(INBOX)
    consumer = Consumer(bus, INBOX, {RefundPayment: refunded})
    broker.delete_queue(topology.ORDER_INBOX)  # the broker declares it again once a message has found it missing
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: len(broker.contents(topology.ORDER_INBOX)) == 1, 60)
    await consumer.stop()
    await running
    await bus.close()
    in_vain, at_last = spans.named(ANSWER)
    assert in_vain.status.status_code is StatusCode.ERROR
    assert at_last.status.status_code is StatusCode.UNSET
    assert spans.parent(in_vain) is spans.parent(at_last) is spans.one(PROCESS)


# --- Requests, timers, operators. ---


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    async def ready() -> dict[str, str]:
        return {}

    router = new_router("orders")

    @router.get("/orders/{order_id}")
    @requires(Permission.CATALOGUE_READ)
    async def look(order_id: str) -> Response:
        if order_id == "broken":
            raise RuntimeError("out of order")
        return Response(tracing.here(order_id) or "nothing")

    app = create_app("served", "", ready, authenticator=key_authenticator())
    add_routes(app.router, router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


async def test_a_request_continues_the_trace_that_its_sender_names(spans: Spans) -> None:
    async with served() as client:
        headers = {"traceparent": ABROAD, "tracestate": "vendor=1"}
        answer = await client.get("/orders/o1", headers=headers)
    request = spans.one("GET /orders/{order_id}")
    assert answer.text == f"00-{TRACE_ABROAD:032x}-{span_id(request):016x}-01"
    assert request.parent is not None
    assert request.parent.span_id == SPAN_ABROAD
    assert request.context is not None
    assert request.context.trace_state.get("vendor") == "1"
    assert attribute(request, ORDER_ID) == "o1"
    assert attribute(request, "http.response.status_code") == 200


@pytest.mark.parametrize("header", GARBAGE, ids=range(len(GARBAGE)))
async def test_a_request_with_a_garbage_header_begins_a_trace(spans: Spans, header: str) -> None:
    async with served() as client:
        assert (await client.get("/orders/o1", headers={"traceparent": header})).status_code == 200
    assert spans.one("GET /orders/{order_id}").parent is None


async def test_a_request_with_two_parents_begins_a_trace(spans: Spans) -> None:
    async with served() as client:
        await client.get("/orders/o1", headers=[("traceparent", ABROAD), ("traceparent", ABROAD)])
    assert spans.one("GET /orders/{order_id}").parent is None


async def test_an_unsampled_remote_trace_is_passed_on_and_not_recorded(spans: Spans) -> None:
    async with served() as client:
        answer = await client.get("/orders/o1", headers={"traceparent": ABROAD[:-1] + "0"})
    assert answer.text.split("-")[1] == f"{TRACE_ABROAD:032x}"
    assert answer.text.endswith("-00")
    assert not spans.all


async def test_a_fault_and_an_unknown_path_are_distinguished(spans: Spans) -> None:
    with capture_logs():
        async with served() as client:
            await client.get("/orders/broken")
    async with served() as client:
        await client.get("/nowhere")
        await client.get("/healthz")
    fault, nowhere = spans.all
    assert (fault.name, fault.status.status_code) == ("GET /orders/{order_id}", StatusCode.ERROR)
    assert (nowhere.name, nowhere.status.status_code) == ("GET", StatusCode.UNSET)
    assert attribute(nowhere, "http.response.status_code") == 404


def test_a_step_without_a_message_is_traced_under_the_context_in_the_record(spans: Spans) -> None:
    following = tracing.continued(ABROAD, "order.deadline_passed", "o1", "CANCELLED")
    step = spans.one("order.deadline_passed")
    assert following == f"00-{TRACE_ABROAD:032x}-{span_id(step):016x}-01"
    assert (attribute(step, ORDER_ID), attribute(step, ORDER_STATUS)) == ("o1", "CANCELLED")


async def test_shared_work_is_not_traced_under_its_first_caller(spans: Spans) -> None:
    seen: list[str | None] = []

    async def work(items: Sequence[str]) -> Sequence[None]:
        seen.append(tracing.here("nobody's"))
        return [None for _ in items]

    grouping = GroupCommit(work, limit=10)
    with tracing.working("first", "o1", None):
        assert tracing.here("o1") is not None
        await grouping.submit("o1")
    assert seen == [None]


# --- Off. ---

SERVICES = ("order_service", "inventory_service", "payment_service", "provisioning_service", "operations.cli")


def test_while_it_is_off_the_sdk_is_not_imported() -> None:
    """Only the API may be present: FastAPI imports it."""
    imports = "; ".join(f"import {name if '.' in name else name + '.__main__'}" for name in SERVICES)
    check = "import sys; print(*[n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exp'))])"
    code = f"{imports}; from shared.tracing import configure_tracing; configure_tracing('order', 'off'); {check}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


async def test_while_it_is_off_no_message_carries_anything_and_no_record_keeps_anything() -> None:
    broker = await placed("o1", traceparents={"o1": ABROAD})
    (request,) = broker.contents(INBOX)
    assert not request.headers
    kept: list[str | None] = []

    async def keeps(requests: Sequence[RefundPayment]) -> Sequence[Message]:
        kept.extend(tracing.of_order(request.order_id) for request in requests)
        return await refunded(requests)

    await handle(broker, until=1, handler=keeps)
    (answer,) = broker.contents(topology.ORDER_INBOX)
    assert not answer.headers
    assert kept == [None]
    async with served() as client:
        assert (await client.get("/orders/o1", headers={"traceparent": ABROAD})).text == "nothing"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.spans", None)
    with pytest.raises(StartError, match=r"ORDERSAGA_TRACING=otlp needs .*ordersaga\[tracing\]"):
        configure_tracing("order", "otlp")
