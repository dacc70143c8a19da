"""The stream of events: read from any offset, over a restart of the broker, filtered, exported, and consumed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pymongo
import pytest
from yarl import URL

from operations.errors import UnreachableError
from operations.events import stream
from operations.events.event import Event, Selection
from operations.events.stream import NoEventStreamError, find_last, follow, read_kept
from operations.stack.broker_topology import apply_topology
from shared.services import ORDER
from shared.topology import DEFAULT_OPTIONS
from tests.support import warm_processes
from tests.support.commands import run_command
from tests.support.events import STEPS, assert_complete_and_in_order, publish, publish_orders
from tests.support.eventually import eventually
from tests.support.processes import run_stack
from tests.support.proxy import Proxy
from tests.support.servers import NativeServers

ROOT = Path(__file__).parents[2]
ORDERS = int(os.environ.get("EVENT_ORDERS", "200"))
"""`make test-events` reads the events of 10,000."""
WITHIN = 60 + ORDERS / 20
"""Seconds for reading all of them beside other work."""


async def everything(batches: AsyncGenerator[list[Event], None]) -> list[Event]:
    return [event async for batch in batches for event in batch]


async def test_all_events_are_read_in_order_from_any_offset_and_over_a_restart(
    own_servers: NativeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RECONNECT_SECONDS", 300.0)  # a slow machine needs a while to start a broker
    url, orders = own_servers.amqp_url, range(ORDERS)
    half = orders[: ORDERS // 2]
    await apply_topology(url, DEFAULT_OPTIONS)
    await publish_orders(url, half)
    assert_complete_and_in_order(await everything(read_kept(url, Selection())), half)
    followed: list[Event] = []

    async def follow_on() -> None:
        async for batch in follow(url, Selection()):
            followed.extend(batch)

    following = asyncio.create_task(follow_on())
    await eventually(lambda: len(followed) >= len(STEPS) * len(half), within=WITHIN)
    await own_servers.stop_broker(kill=True)
    await own_servers.start_broker()

    async def published() -> bool:
        with contextlib.suppress(UnreachableError):
            return await find_last(url) is not None
        return False

    await eventually(published, within=60)
    await publish_orders(url, orders[ORDERS // 2 :])
    await eventually(lambda: len(followed) >= len(STEPS) * ORDERS, within=WITHIN)
    following.cancel()
    assert_complete_and_in_order(followed, orders)
    for start in (0, 1, ORDERS, len(STEPS) * ORDERS - 1):
        found = await everything(read_kept(url, Selection(offset=start)))
        assert_complete_and_in_order(found, orders, start)
    assert await everything(read_kept(url, Selection(offset=len(STEPS) * ORDERS))) == []


async def test_a_tail_that_was_quiet_for_hours_goes_on_after_its_connection_is_lost(
    clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: clock.now))
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    await publish_orders(clean_broker, range(1))
    followed: list[Event] = []
    async with Proxy(URL(clean_broker)).open() as proxy:

        async def follow_on() -> None:
            async for batch in follow(str(proxy.url), Selection()):
                followed.extend(batch)

        following = asyncio.create_task(follow_on())

        async def until(number: int) -> None:
            await eventually(lambda: following.done() or len(followed) >= number, WITHIN, f"{number} events")
            assert not following.done(), following.exception()

        await until(len(STEPS))
        for number in (1, 2):
            clock.now += 7200.0
            proxy.cut()
            await publish_orders(clean_broker, range(number, number + 1))
            await until(len(STEPS) * (number + 1))
        following.cancel()
    assert_complete_and_in_order(followed, range(3))


async def test_a_stream_that_is_missing_or_empty_and_a_broker_that_is_away_are_told_apart(
    clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "EMPTY_SECONDS", 0.5)
    with pytest.raises(NoEventStreamError, match=r"there is no stream ordersaga\.events"):
        await find_last(clean_broker)
    with pytest.raises(UnreachableError, match="RabbitMQ does not answer"):
        await find_last("amqp://127.0.0.1:1/")
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    assert await find_last(clean_broker) is None
    assert await everything(read_kept(clean_broker, Selection())) == []
    await publish(clean_broker, "order.created", body=b"no JSON")
    last = await find_last(clean_broker)
    assert last is not None
    assert (last.offset, last.type, last.order_id) == (0, "order.created", None)
    assert "no JSON" not in last.data


async def run(amqp_url: str, *words: str) -> tuple[int, str, str]:
    given = {"ORDERSAGA_AMQP_URL": amqp_url, "ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "PATH": ""}
    return await run_command("events", *words, environment=given)


async def test_tail_filters_and_hides_tokens_and_an_export_that_fails_leaves_the_file_alone(
    clean_broker: str, tmp_path: Path
) -> None:
    out = tmp_path / "events.jsonl"
    out.write_text("from yesterday")
    status, _, errors = await run(clean_broker, "export", "--out", str(out))
    assert (status, "there is no stream ordersaga.events" in errors) == (1, True)
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    await publish_orders(clean_broker, range(3))

    status, printed, _ = await run(clean_broker, "tail", "--json", "--type", "order.c*", "--order", "o1")
    found = json.loads(printed)
    assert (status, found["nextCursor"]) == (0, None)
    assert [(event["type"], event["orderId"]) for event in found["items"]] == [
        ("order.created", "o1"),
        ("order.completed", "o1"),
    ]
    assert "tok_secret" not in printed
    assert await run(clean_broker, "tail", "--since", "2000-01-01", "--type", "package.*") == (
        1,
        "",
        f"stack: mongodb://127.0.0.1:1/ and {shown(clean_broker)} (databases ordersaga_*)\n",
    )
    assert (await run("amqp://127.0.0.1:1/", "export", "--out", str(out)))[0] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["events.jsonl"]
    assert out.read_text() == "from yesterday"
    assert (await run(clean_broker, "export", "--since", "1h", "--out", str(out)))[0] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["offset"] for line in lines] == list(range(3 * len(STEPS)))
    assert out.stat().st_mode & 0o777 == 0o600


async def test_odd_times_and_bodies_lose_no_event(clean_broker: str, tmp_path: Path) -> None:
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    deep = b'{"orderId": "o2", "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301
    deeper = b'{"orderId": "o3", "metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 901
    for body in (b'{"orderId": "o1"}', deep, deeper, b"no JSON"):
        await publish(clean_broker, "order.created", body=body)
    for since in ("0001-01-01", "1960-01-01", "1970-01-01"):
        status, printed, errors = await run(clean_broker, "tail", "--json", "--since", since)
        assert (status, len(json.loads(printed)["items"])) == (0, 4), errors
    status, _, errors = await run(clean_broker, "tail", "--since", "999999w")
    assert (status, "'999999w' is outside of the years 1 to 9999" in errors) == (2, True), errors
    for format_ in ("jsonl", "parquet"):
        out = tmp_path / format_
        status, _, errors = await run(clean_broker, "export", "--format", format_, "--out", str(out))
        assert (status, "exported 4 events" in errors) == (0, True), errors
        assert "2 of them without the body" in errors
        assert "(at offset 2, 3)" in errors
    lines = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    assert [line["orderId"] for line in lines] == ["o1", "o2", "o3", None]
    assert lines[1]["data"] == json.loads(deep)
    assert pq.read_table(tmp_path / "parquet").column("order_id").to_pylist() == ["o1", "o2", "o3", None]


async def test_the_example_names_a_body_it_cannot_read_and_goes_on(clean_broker: str, tmp_path: Path) -> None:
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    for body in (b"no JSON", b"[]", b"\xff", b"[" * 100_000, b'{"orderId": "o1"}'):
        await publish(clean_broker, "order.created", body=body)
    example = await start_example(clean_broker, tmp_path / "place", stderr=asyncio.subprocess.PIPE)
    try:
        await eventually((tmp_path / "place").exists, within=60)
        await eventually(lambda: (tmp_path / "place").read_text() == "4", within=60)
    finally:
        example.kill()
        printed, errors = await example.communicate()
    assert printed.decode() == "4 order.created o1\n"
    assert errors.decode().splitlines() == [
        f"skipped order.created at offset {offset}: its body is not a JSON object" for offset in range(4)
    ]


def shown(url: str) -> str:
    return url.replace("guest:guest@", "guest:***@")


async def test_an_export_has_the_figures_of_the_database(
    mongodb_url: str, clean_broker: str, database_prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "events.parquet"
    async with run_stack(mongodb_url, clean_broker, database_prefix) as stack:
        await stack.start()
        await stack.stock("p1", 1000)

        def body(index: int) -> dict[str, Any]:
            return {"payment": {"token": "tok_declined" if index % 3 == 0 else "tok_ok"}}

        placed = await stack.place_many(30, body)
        await stack.all_settled(placed)
        status, _, errors = await run(clean_broker, "export", "--format", "parquet", "--out", str(out))
        assert status == 0, errors
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        orders = await client[ORDER.database_in(database_prefix)]["orders"].find().to_list()
    rows = pq.read_table(out).to_pylist()
    # At least once: an order that was slow may have been published again.
    assert {(row["order_id"], row["type"]) for row in rows} == {
        *((order["_id"], "order.created") for order in orders),
        *((order["_id"], f"order.{order['status'].lower()}") for order in orders),
    }
    assert len({order["status"] for order in orders}) == 2
    created = {row["order_id"]: row for row in rows if row["type"] == "order.created"}
    assert {order["_id"]: Decimal(order["totalAmount"]) / 100 for order in orders} == {
        order_id: row["total_amount"] for order_id, row in created.items()
    }
    assert {order["_id"]: order["status"] for order in orders} == {
        row["order_id"]: row["type"].removeprefix("order.").upper() for row in rows if row["type"] != "order.created"
    }
    assert b"tok_" not in out.read_bytes()


async def test_following_ends_with_ctrl_c(clean_broker: str) -> None:
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    await publish_orders(clean_broker, range(1))
    environment = {"ORDERSAGA_AMQP_URL": clean_broker, "ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "PATH": ""}
    words = ("events", "tail", "--follow", "--json")
    tailing = await warm_processes.start("operations.cli", *words, environment=environment)
    line = b""
    async with asyncio.timeout(60):
        while not line.startswith(b"{"):
            line = await tailing.stdout.readline()
    assert json.loads(line)["type"] == "order.created"
    tailing.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        rest = await tailing.stdout.read()
        assert await tailing.wait() == 0
    assert b"Traceback" not in rest


async def test_the_example_continues_where_it_stopped(clean_broker: str, tmp_path: Path) -> None:
    await apply_topology(clean_broker, DEFAULT_OPTIONS)
    await publish_orders(clean_broker, range(50))
    place = tmp_path / "events.offset"
    last = 50 * len(STEPS) - 1
    assert (await offsets_of_the_example(clean_broker, place, until=2))[:3] == [0, 1, 2]
    kept = int(place.read_text())
    assert await offsets_of_the_example(clean_broker, place, until=last) == [*range(kept + 1, last + 1)]


async def offsets_of_the_example(amqp_url: str, place: Path, until: int) -> list[int]:
    """Run the example until it has kept a place, then kill it; return the offsets that it has printed."""
    example = await start_example(amqp_url, place)
    try:
        await eventually(lambda: place.exists() and int(place.read_text()) >= until, within=60)
    finally:
        example.kill()
        printed, _ = await example.communicate()
    return [int(line.split()[0]) for line in printed.splitlines()]


async def start_example(amqp_url: str, place: Path, stderr: int | None = None) -> asyncio.subprocess.Process:
    script = str(ROOT / "examples" / "event_consumer.py")
    return await asyncio.create_subprocess_exec(
        sys.executable, script, amqp_url, str(place), stdout=asyncio.subprocess.PIPE, stderr=stderr
    )
