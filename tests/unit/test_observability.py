"""Logs: one line an event, in either format, that names what it is about and nothing that only the code should see."""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import httpx
import pytest
import structlog
from starlette.responses import Response

from shared import topology, tracing
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.bus.consumer import Consumer
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.contracts import Message, RefundPayment
from shared.http import add_routes, create_app, new_router
from shared.observability import configure_logging, logs_to_stderr
from tests.support.access import ADMIN, key_authenticator
from tests.support.eventually import eventually
from tests.support.traces import recording, span_id, trace_id


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def connect(url: str) -> None:
    raise RuntimeError(f"cannot reach {url.rpartition('@')[2]}")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_the_code_and_not_the_values_in_it(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("payment", "INFO", log_format)
    url = "amqp://guest:" + "s3cret" + "@broker"
    try:
        connect(url)
    except RuntimeError:
        structlog.get_logger().exception("failed", order_id="o1")
    logged = capsys.readouterr().out
    assert "cannot reach broker" in logged
    assert "in connect" in logged
    assert "guest:s3cret" not in logged


def test_json_is_one_object_a_line_with_the_service_named(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("payment", "INFO", "json")
    structlog.get_logger().info("handled", order_id="o1", count=3)
    logging.getLogger("some.library").warning("from a library")
    structlog.get_logger().debug("not at this level")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["service"] for line in lines] == ["payment", "payment"]
    assert (lines[0]["event"], lines[0]["order_id"], lines[0]["count"]) == ("handled", "o1", 3)
    assert (lines[1]["event"], lines[1]["level"]) == ("from a library", "warning")


def give_up(url: str) -> None:
    raise RuntimeError(f"no answer from {url}")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_password_in_a_url_is_hidden_wherever_it_stands(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("payment", "INFO", log_format)
    url = "mongodb://operator:s3cret@db.example:27017/?replicaSet=rs0"
    try:
        give_up(url)
    except RuntimeError as error:
        structlog.get_logger().exception(f"gave up {url}", error=str(error))
    logging.getLogger("some.driver").warning("cannot reach %s", url)
    logged = capsys.readouterr().out
    assert "s3cret" not in logged
    assert logged.count("operator:***@db.example") == 4


def test_a_command_keeps_logs_out_of_its_answer_while_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    with logs_to_stderr(logging.ERROR):
        log.error("unreachable")
        log.warning("slow")
    meanwhile = capsys.readouterr()
    log.warning("slow again")
    afterwards = capsys.readouterr()
    assert (meanwhile.out, "unreachable" in meanwhile.err, "slow" in meanwhile.err) == ("", True, False)
    assert "slow again" in afterwards.out


def configure(service: str, level: str) -> None:
    """Have modules log in JSON, and forget it when the test is over: a logger that was used would keep it."""
    configure_logging(service, level, "json")
    structlog.configure(cache_logger_on_first_use=False)


def lines(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    """The lines of that event so far, since they were last asked for."""
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in found if line["event"] == event]


async def take(*order_ids: str) -> None:
    """Let a consumer handle a message about each of the orders, all in one batch."""

    async def refund(requests: Sequence[RefundPayment]) -> Sequence[Message]:
        structlog.get_logger().info("from within", requests=len(requests))
        return []

    broker = MemoryBroker()
    bus = MemoryBus(broker)
    await bus.start(topology.PAYMENT_INBOX)
    await Publisher(bus).send([RefundPayment(order_id=order_id) for order_id in order_ids])
    consumer = Consumer(bus, topology.PAYMENT_INBOX, {RefundPayment: refund})
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: not broker.depth(), 60)
    await consumer.stop()
    await running


async def test_while_one_message_is_handled_every_line_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure("payment", "INFO")
    await take("o1")
    (line,) = lines(capsys, "from within")
    assert (line["order_id"], line["requests"]) == ("o1", 1)
    assert line["message_id"]
    structlog.get_logger().info("afterwards")
    assert "order_id" not in lines(capsys, "afterwards")[0]


async def test_while_several_are_handled_no_line_names_one_of_them_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    configure("payment", "DEBUG")
    await take("o1", "o2")
    handled = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (within,) = (line for line in handled if line["event"] == "from within")
    assert within["requests"] == 2
    assert not {"order_id", "message_id"} & within.keys()
    named = [line for line in handled if line["event"] == "message handled"]
    assert [line["order_id"] for line in named] == ["o1", "o2"]
    assert len({line["message_id"] for line in named}) == 2


async def test_the_lines_of_a_request_name_the_order_of_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    configure("order", "DEBUG")

    async def ready() -> dict[str, str]:
        return {}

    router = new_router("orders")

    @router.get("/orders/{order_id}")
    @requires(Permission.CATALOGUE_READ)
    async def look(order_id: str) -> Response:
        structlog.get_logger().info("looking")
        if order_id == "broken":
            raise RuntimeError("out of order")
        return Response()

    app = create_app("order", "", ready, authenticator=key_authenticator())
    add_routes(app.router, router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        for path in ("/orders/o1", "/orders/broken", "/healthz"):
            await client.get(path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    named = [(line["event"], line["level"], line.get("order_id")) for line in lines if line.get("logger") != "httpx"]
    assert [line for line in named if "HTTP Request" not in line[0]] == [
        ("looking", "info", "o1"),
        ("request answered", "debug", "o1"),
        ("looking", "info", "broken"),
        ("request answered", "debug", "broken"),
        ("request failed", "error", "broken"),
    ]


def test_a_line_within_a_span_says_where_it_is_in_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure("order", "INFO")
    with recording() as spans, tracing.working("something", "o1", None):
        structlog.get_logger().info("within")
        logging.getLogger("some.library").warning("within")
    structlog.get_logger().info("outside")
    first, second = lines(capsys, "within")
    span = spans.one("something")
    assert first["trace_id"] == second["trace_id"] == f"{trace_id(span):032x}"
    assert first["span_id"] == f"{span_id(span):016x}"


HOSTILE = "/orders/\x1b]0;PWNED\x07/do\nforged=line \x9b31m \u202e \u2028 \x7f"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_holds_no_control_character_for_any_logged_value(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("payment", "INFO", log_format)
    structlog.get_logger().warning(HOSTILE, path=HOSTILE, ids=[HOSTILE], error=ValueError(HOSTILE), other=Named())
    logging.getLogger("library").error("it says %s", HOSTILE)
    logged = capsys.readouterr().out
    lines = logged.splitlines(keepends=True)
    assert len(lines) == 2
    assert all(line.removesuffix("\n").isprintable() for line in lines)
    assert all("PWNED" in line for line in lines)
    if log_format == "json":
        assert json.loads(lines[0])["path"] == HOSTILE


def test_a_command_logs_no_control_character_either(capsys: pytest.CaptureFixture[str]) -> None:
    with logs_to_stderr(logging.WARNING):
        structlog.get_logger().warning("refused", path=HOSTILE)
    logged = capsys.readouterr().err
    assert "PWNED" in logged
    assert logged.removesuffix("\n").isprintable()


class Named:
    """An object whose representation is what a sender has written."""

    def __repr__(self) -> str:
        return HOSTILE
