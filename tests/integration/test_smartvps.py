"""The SmartVPS client and the simulator over HTTP, and a raw server for answers that the simulator never gives."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from operations.stack.ports import PortClaims
from provisioning_service.provider import Provider, ProviderError, ProviderUnansweredError
from provisioning_service.smartvps import SENDING, SmartVps
from shared.failpoints import SimulatedCrashError
from tests.support.eventually import eventually
from tests.support.simulators import Simulator, package, run_simulator

SECRET = "s3cret-Pa55"
LONG_TIMEOUT = 60.0
"""A timeout that no slow machine reaches."""


def nothing() -> None:
    """Allow the request."""


@asynccontextmanager
async def client(url: str, **changes: Any) -> AsyncIterator[SmartVps]:
    values: dict[str, Any] = {
        "username": "simulator",
        "password": "simulator",
        "buy_timeout": LONG_TIMEOUT,
        "status_timeout": LONG_TIMEOUT,
        "stock_timeout": LONG_TIMEOUT,
    }
    smartvps = SmartVps(url=url, **(values | changes))
    try:
        yield smartvps
    finally:
        await smartvps.close()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with run_simulator() as running:
        await running.packages([package("103.181.9", 3), package("103.181.91", 2, id=91)])
        yield running


@pytest.fixture
async def smartvps(simulator: Simulator) -> AsyncIterator[SmartVps]:
    async with client(simulator.url) as connected:
        yield connected


@asynccontextmanager
async def server(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """Run a server that handles each connection with `answer`; return its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await listening.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


def answers(body: bytes, status: str = "200 OK") -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()

    return answer


def measured(call: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("provider_call_seconds_count", {"call": call, "outcome": outcome}) or 0


# --- The client. ---


async def test_it_is_a_provider(smartvps: SmartVps) -> None:
    provider: Provider = smartvps
    assert [(p.package_id, p.name, p.active, p.ipv4) for p in await provider.packages()] == [
        ("id-103.181.9", "103.181.9", True, 3),
        ("91", "103.181.91", True, 2),
    ]


async def test_a_server_is_bought_and_found_again(simulator: Simulator, smartvps: SmartVps) -> None:
    for ip in ("103.181.9.2", "103.181.9.3"):  # one answer is JSON, the other one plain text
        assert await smartvps.buy(ip, 4096, before_sending=nothing) == ip
        for _ in range(2):  # one answer is encoded twice
            found = await smartvps.access(ip)
            assert found
            assert (found.ip, found.username, found.os) == (ip, "root", "Ubuntu 22.04")
            assert found.password
            assert found.expires_at
    assert [(p["ip"], p["package"], p["ram"]) for p in await simulator.purchases()] == [
        ("103.181.9.2", "103.181.9", 4096),
        ("103.181.9.3", "103.181.9", 4096),
    ]
    assert (await smartvps.packages())[0].ips == ("103.181.9.1",)
    assert await smartvps.access("103.181.9.1") is None


async def test_memory_may_be_left_to_the_provider(simulator: Simulator, smartvps: SmartVps) -> None:
    await smartvps.buy("103.181.9.2", None, before_sending=nothing)
    assert [purchase["ram"] for purchase in await simulator.purchases()] == [None]


async def test_the_address_that_was_assigned_is_returned_even_if_it_is_wrong(
    simulator: Simulator, smartvps: SmartVps
) -> None:
    await simulator.faults(buy={"wrongIpNext": 1})
    assert await smartvps.buy("103.181.9.2", None, before_sending=nothing) == "103.181.91.1"


async def test_a_provider_that_fails_is_an_error_and_is_asked_once(simulator: Simulator, smartvps: SmartVps) -> None:
    before = measured("buyvps", "error"), measured("status", "error")
    await simulator.faults(buy={"failNext": 1}, status={"failNext": 1})
    with pytest.raises(ProviderError, match=r"^buyvps: answered 500$") as answered:
        await smartvps.buy("103.181.9.2", None, before_sending=nothing)
    assert not isinstance(answered.value, ProviderUnansweredError), (
        "it was an answer, so the provider has finished processing"
    )
    with pytest.raises(ProviderError, match=r"^status: answered 500$"):
        await smartvps.access("103.181.9.2")
    assert await simulator.purchases() == []
    assert (measured("buyvps", "error"), measured("status", "error")) == (before[0] + 1, before[1] + 1)


async def test_a_lost_answer_is_an_error_and_the_purchase_is_not_repeated(
    simulator: Simulator, smartvps: SmartVps
) -> None:
    await smartvps.packages()  # leaves a connection that the purchase reuses
    await simulator.faults(buy={"loseAnswerNext": 1})
    with pytest.raises(ProviderUnansweredError, match=r"^buyvps: the connection broke: \w+$"):
        await smartvps.buy("103.181.9.2", None, before_sending=nothing)
    assert [purchase["ip"] for purchase in await simulator.purchases()] == ["103.181.9.2"]


async def test_wrong_credentials_are_an_error_that_does_not_show_them(simulator: Simulator) -> None:
    async with client(simulator.url, username="operator", password=SECRET) as stranger:
        with pytest.raises(ProviderError, match=r"^ipstock: answered 401$"):
            await stranger.packages()


async def test_a_provider_that_is_away_is_an_error_and_nothing_was_sent() -> None:
    sent: list[None] = []
    with socket.socket() as taken:  # so that no other process listens there
        taken.bind(("127.0.0.1", 0))
        async with client(f"http://127.0.0.1:{taken.getsockname()[1]}") as lonely:
            with pytest.raises(ProviderError, match=r"^buyvps: could not connect") as refused:
                await lonely.buy("103.181.9.2", None, before_sending=lambda: sent.append(None))
    assert not sent
    assert not isinstance(refused.value, ProviderUnansweredError), "nothing was sent, so nothing can be answered"


@pytest.mark.parametrize("reason", [ValueError("stop"), TimeoutError(), httpx.ReadError("x"), SimulatedCrashError("x")])
async def test_an_exception_before_sending_is_raised_and_nothing_is_sent(reason: BaseException) -> None:
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    def stop() -> None:
        raise reason

    before = measured("buyvps", "error")
    async with server(listen) as url, client(url) as connected:
        with pytest.raises(type(reason)) as raised:
            await connected.buy("103.181.9.2", None, before_sending=stop)
        assert raised.value is reason
        await eventually(lambda: received, LONG_TIMEOUT)
    assert received == [b""]
    assert measured("buyvps", "error") == before


async def test_before_sending_is_called_after_connecting_and_before_the_first_byte() -> None:
    events: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events.append("connected")
        await reader.read(1)
        events.append("received")

    def last_moment() -> None:
        events.append("last moment")

    async with server(listen) as url, client(url) as connected:
        with pytest.raises(ProviderError, match="the connection broke"):
            await connected.buy("103.181.9.2", None, before_sending=last_moment)
    assert Counter(events) == {"connected": 1, "last moment": 1, "received": 1}
    assert events.index("last moment") < events.index("received")
    assert SENDING == "http11.send_request_headers.started"


async def test_a_timeout_bounds_the_whole_call_even_if_the_provider_keeps_sending() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(150):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    started = time.monotonic()
    async with server(drip) as url, client(url, status_timeout=0.3) as connected:
        with pytest.raises(ProviderError, match=r"^status: no answer within 0\.3 s$"):
            await connected.access("103.181.9.2")
    assert time.monotonic() - started >= 0.3


async def test_calls_that_timed_out_do_not_affect_later_calls(
    simulator: Simulator,
) -> None:
    async with client(simulator.url, buy_timeout=0.2) as impatient:
        await simulator.faults(buy={"delaySeconds": 600})
        attempts = [impatient.buy("103.181.9.2", None, before_sending=nothing) for _ in range(3)]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["buyvps: no answer within 0.2 s"] * 3
        assert {type(outcome) for outcome in outcomes} == {ProviderUnansweredError}
        await simulator.faults(buy={})
        impatient._buy_timeout = LONG_TIMEOUT  # it keeps its connections, with a long timeout from here on
        assert await impatient.buy("103.181.91.1", None, before_sending=nothing) == "103.181.91.1"


async def test_a_cancelled_call_ends_as_cancelled(simulator: Simulator, smartvps: SmartVps) -> None:
    await simulator.faults(status={"delaySeconds": 600})
    call = asyncio.create_task(smartvps.access("103.181.9.1"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 0.1)
    assert call.cancelled()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        ("200 OK", SECRET.encode(), "an answer without an IPv4"),
        ("200 OK", b"", "an answer without an IPv4"),
        ("302 Found", SECRET.encode(), "answered 302"),
        ("404 Not Found", SECRET.encode(), "answered 404"),
        ("500 " + SECRET, SECRET.encode(), "answered 500"),
        ("200 OK", b'"' + b" " * 5 * 1024 * 1024 + b'"', "an answer of more than 5 MiB"),
        (SECRET, b"", "the connection broke: RemoteProtocolError"),
    ],
)
async def test_an_unusable_answer_is_an_error_without_any_part_of_it(status: str, body: bytes, says: str) -> None:
    async with server(answers(body, status)) as url, client(url) as connected:
        with pytest.raises(ProviderError) as refused:
            await connected.buy("103.181.9.2", None, before_sending=nothing)
    assert str(refused.value) == f"buyvps: {says}"
    assert SECRET not in "".join(traceback.format_exception(refused.value))


async def test_unreadable_parts_of_the_stock_are_skipped_with_a_warning(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"id": 7, "name": "103.181.9", "status": "active", "ipv4": "2", "ips": ["103.181.9.1", SECRET]}, SECRET]
    body = json.dumps(json.dumps({"packages": listed})).encode()
    async with server(answers(body)) as url, client(url) as connected:
        with caplog.at_level(logging.DEBUG):
            assert [found.ips for found in await connected.packages()] == [("103.181.9.1",)]
    logged = caplog.text + "".join(capsys.readouterr())
    assert "1 of the addresses of package 7" in logged
    assert "the package at position 1" in logged
    assert SECRET not in logged


async def test_neither_credentials_nor_answers_are_logged(
    simulator: Simulator, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with client(simulator.url) as smartvps:
            await smartvps.buy("103.181.9.2", None, before_sending=nothing)
            found = await smartvps.access("103.181.9.2")
    assert found
    logged = caplog.text + "".join(capsys.readouterr())
    assert "103.181.9.2" in logged  # from the simulator's log of the sale
    for secret in (found.password, "Authorization", "c2ltdWxhdG9y", "HTTP Request"):
        assert secret not in logged


async def test_a_connection_serves_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning_service.smartvps.KEEP_ALIVE_SECONDS", LONG_TIMEOUT)
    connections: list[int] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        while await read_request(reader):
            connections[-1] += 1
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with server(listen) as url, client(url) as connected:
        for _ in range(3):
            assert await connected.access("103.181.9.2") is None
    assert connections == [3]


# --- The simulator. ---


async def test_a_purchase_takes_effect_after_its_client_has_disconnected(simulator: Simulator) -> None:
    await simulator.faults(buy={"delaySeconds": 600})
    async with client(simulator.url) as impatient:
        buying = asyncio.create_task(impatient.buy("103.181.9.2", None, before_sending=nothing))
        await eventually(lambda: simulator.asked_to_buy, LONG_TIMEOUT, "the call to arrive")
        buying.cancel()
        await asyncio.wait({buying})
    assert buying.cancelled()
    assert await simulator.purchases() == []
    assert "103.181.9.2" in (await simulator.free())["103.181.9"]
    await simulator.faults(buy={})
    await eventually(simulator.purchases, LONG_TIMEOUT, "the purchase to take effect")
    assert "103.181.9.2" not in (await simulator.free())["103.181.9"]


async def test_concurrent_purchases_never_get_one_address_twice(simulator: Simulator, smartvps: SmartVps) -> None:
    await simulator.faults(buy={"delaySeconds": 0.1})
    buying = [smartvps.buy("103.181.9.2", None, before_sending=nothing) for _ in range(8)]
    outcomes = await asyncio.gather(*buying, return_exceptions=True)
    assert Counter(outcome for outcome in outcomes if isinstance(outcome, str)) == Counter(
        ["103.181.9.1", "103.181.9.2", "103.181.9.3", "103.181.91.1", "103.181.91.2"]
    )
    assert [str(error) for error in outcomes if isinstance(error, ProviderError)] == ["buyvps: answered 409"] * 3


async def test_a_group_of_faults_that_is_not_given_stays_unchanged(simulator: Simulator) -> None:
    status = {"failNext": 2, "delaySeconds": 0.5}
    assert (await simulator.faults(status=status))["status"] == status
    none = {"failNext": 0, "delaySeconds": 0, "wrongIpNext": 0, "loseAnswerNext": 0}
    assert await simulator.faults(buy={"failNext": 1, "wrongIpNext": 3}) == {
        "buy": {**none, "failNext": 1, "wrongIpNext": 3},
        "status": status,
    }
    assert await simulator.faults(buy={"loseAnswerNext": 1}) == {"buy": {**none, "loseAnswerNext": 1}, "status": status}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("faults", {"buy": {"failNext": -1}}, "buy.failNext"),
        ("faults", {"buy": {"failNext": "1"}}, "buy.failNext"),
        ("faults", {"buy": {"failNow": 1}}, "buy.failNow"),
        ("faults", {"status": {"wrongIpNext": 1}}, "status.wrongIpNext"),
        ("faults", {"status": {"delaySeconds": -0.1}}, "status.delaySeconds"),
        ("faults", {"stock": {}}, "stock"),
        ("packages", {}, "packages"),
        ("packages", {"packages": [{"id": "1", "ips": []}]}, "packages[0].name"),
        ("packages", {"packages": [{**package("103.83"), "ips": ["103.83.1"]}]}, "packages[0].ips[0]"),
        ("packages", {"packages": [package("103.83"), package("103.83")]}, "packages"),
        ("packages", {"packages": [package("103.83.1"), package("103.83")]}, "packages"),
    ],
)
async def test_a_wrong_setting_is_refused_and_named(simulator: Simulator, path: str, body: Any, field: str) -> None:
    response = await simulator.client.post(f"/_control/{path}", json=body)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert set(await simulator.free()) == {"103.181.9", "103.181.91"}


async def test_the_providers_calls_need_its_credentials_and_the_rest_does_not(simulator: Simulator) -> None:
    for call in ("ipstock", "buyvps", "status"):
        for credentials in ("", "simulator:wrong@", "wrong:simulator@"):
            url = f"{simulator.url.replace('//', f'//{credentials}')}/api/oceansmart/{call}"
            response = await simulator.client.post(url, json={"ip": "103.181.9.2"})
            assert response.status_code == 401
            assert response.headers["content-type"] == "application/problem+json"
    for path in ("/healthz", "/readyz", "/openapi.json", "/_control/purchases"):
        assert (await simulator.client.get(path)).status_code == 200
    assert await simulator.purchases() == []


@asynccontextmanager
async def process(**settings: object) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    environment |= {f"ORDERSAGA_{name.upper()}": str(value) for name, value in settings.items()}
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "provisioning_service.simulator"), env=environment, stdout=pipe, stderr=pipe
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def test_the_process_sells_and_ends_quickly_even_during_calls() -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(PortClaims()).claim_free()
        url = f"http://127.0.0.1:{port}"
        running = await stack.enter_async_context(process(http_port=port, smartvps_password=SECRET))
        smartvps = await stack.enter_async_context(client(url, password=SECRET))
        control = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=LONG_TIMEOUT))

        async def ready() -> bool:
            return (await control.get("/readyz")).status_code == 200

        await eventually(ready, LONG_TIMEOUT)
        assert [(p.package_id, p.name, p.ipv4) for p in await smartvps.packages()] == [
            ("1", "203.0.113", 10),
            ("2", "198.51.100", 3),
        ]
        assert await smartvps.buy("203.0.113", 1024, before_sending=nothing) == "203.0.113.10"
        found = await smartvps.access("203.0.113.10")
        await control.post("/_control/faults", json={"buy": {"delaySeconds": 3600}})
        sent = asyncio.Event()
        delayed = asyncio.create_task(smartvps.buy("203.0.113", 1024, before_sending=sent.set))
        await sent.wait()
        await control.get("/healthz")  # answered after the purchase has arrived
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LONG_TIMEOUT / 2):  # long for the end of a process, short compared with the delay
            output, errors = await running.communicate()
        with pytest.raises(ProviderError, match="the connection broke"):
            await delayed
    assert running.returncode == 0
    assert errors == b""
    logged = output.decode()
    assert "ip=203.0.113.10" in logged
    assert found
    assert found.password not in logged
    assert SECRET not in logged


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"http_port": "x"}, "ORDERSAGA_HTTP_PORT='x' is not valid"),
        ({"log_level": "LOUD"}, "ORDERSAGA_LOG_LEVEL='LOUD' is not valid"),
    ],
)
async def test_a_wrong_setting_ends_the_process_with_one_line(settings: dict[str, Any], says: str) -> None:
    async with process(**settings) as running:
        output, errors = await running.communicate()
    assert running.returncode == 1
    assert output == b""
    assert errors.decode().startswith(says)
    assert len(errors.splitlines()) == 1


async def test_a_port_that_is_taken_ends_the_process_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with process(http_port=taken.getsockname()[1]) as running:
            _, errors = await running.communicate()
    assert running.returncode == 1
    assert b"cannot listen on ORDERSAGA_HTTP_HOST=127.0.0.1" in errors
    assert len(errors.splitlines()) == 1
