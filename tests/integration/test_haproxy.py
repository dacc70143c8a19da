"""What haproxy repeats, passes on, writes and answers itself with the configuration in deploy/scale."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from operations.stack.ports import PortClaims
from shared.problems import UNAVAILABLE
from tests.support.eventually import eventually
from tests.support.scripted_server import RESET, Part, answer, scripted

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "scale" / "haproxy.cfg"
LOG = "haproxy.log"
WITHIN_SECONDS = 60
KEY = {"Idempotency-Key": "cart-4711"}
BUSY, GOOD = answer(503, {"title": "busy"}), answer(202, {"orderId": "1"})


@contextlib.asynccontextmanager
async def haproxy(directory: Path, server: str) -> AsyncIterator[str]:
    """Run it with one server at an address, for all paths, and without health checks; it writes into `LOG`."""
    binary = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary is not None, "make setup-tests installs haproxy"
    with PortClaims() as claims:
        port = claims.claim_free()
        text = re.sub(r"    bind .*\n", "", CONFIGURATION.read_text().partition("backend inventory")[0])
        for written, instead in {
            "    use_backend": f"    bind 127.0.0.1:{port} name order\n    use_backend",
            "server-template order- 20 order:3008": f"server only {server}",
            "check inter 1s fall 2 rise 1 resolvers docker init-addr none": "no-check",
        }.items():
            assert written in text
            text = text.replace(written, instead)
        configuration = directory / "haproxy.cfg"
        configuration.write_text(text)
        command = [binary, "-db", "-f", str(configuration)]
        with open(directory / LOG, "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            await eventually(lambda: asyncio.to_thread(listens, port), WITHIN_SECONDS, "haproxy to listen")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


def listens(port: int) -> bool:
    subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], check=True, capture_output=True)
    return True


@pytest.mark.parametrize(
    ("request_line", "headers", "script", "status", "sent"),
    [
        ("POST /orders", KEY, [RESET, GOOD], 202, 2),
        ("POST /orders", KEY, [BUSY, GOOD], 202, 2),
        ("POST /orders/1/refunds", KEY, [RESET, GOOD], 202, 2),
        ("POST /inventory/p1/restock", KEY, [RESET, GOOD], 202, 2),
        ("GET /orders", {}, [RESET, BUSY, GOOD], 202, 3),
        ("POST /orders", {}, [RESET, GOOD], 502, 1),
        ("POST /orders", {}, [BUSY, GOOD], 503, 1),
        ("POST /orders", KEY, [BUSY, BUSY, BUSY, GOOD], 503, 3),
        # These take no key: a second one might undo what another client did meanwhile.
        ("POST /orders/1/cancel", KEY, [RESET, GOOD], 502, 1),
        ("PUT /inventory/p1", KEY, [RESET, GOOD], 502, 1),
    ],
)
async def test_only_what_may_be_repeated_is_repeated(
    tmp_path: Path, request_line: str, headers: dict[str, str], script: list[Part], status: int, sent: int
) -> None:
    method, path = request_line.split()
    with scripted(script) as server:
        async with (
            haproxy(tmp_path, server.url.removeprefix("http://")) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            answered = await client.request(method, url + path, headers=headers)
    assert (answered.status_code, len(server.requests)) == (status, sent)
    assert answered.headers["content-type"].startswith("application/")


async def test_it_refuses_as_a_service_does_when_there_is_none(tmp_path: Path) -> None:
    with PortClaims() as claims:
        async with (
            haproxy(tmp_path, f"127.0.0.1:{claims.claim_free()}") as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            answered = await client.post(f"{url}/orders")
    assert (answered.status_code, answered.headers["retry-after"]) == (503, "1")
    assert (answered.json()["type"], answered.json()["title"]) == (UNAVAILABLE.uri, UNAVAILABLE.title)


async def test_it_writes_a_line_for_each_request_without_the_query_which_may_sign_in(tmp_path: Path) -> None:
    async def written(*pages: str) -> None:
        def all_there() -> bool:
            log = (tmp_path / LOG).read_text()
            return re.findall(r' 202 .*"GET \S*/sign-in/(\w+) HTTP/1.1"$', log, re.MULTILINE) == [*pages]

        await eventually(all_there, WITHIN_SECONDS, "a line for each request")

    with scripted([GOOD, GOOD]) as server:
        async with (
            haproxy(tmp_path, server.url.removeprefix("http://")) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            await client.get(f"{url}/sign-in/link?token=only-once")
            await written("link")
            port = int(url.rpartition(":")[2])
            await asyncio.to_thread(ask_as_a_proxy, port, "http://localhost/sign-in/callback?code=only-once")
            await written("link", "callback")
    assert ["=only-once HTTP" in received.line for received in server.requests] == [True, True]
    assert "only-once" not in (tmp_path / LOG).read_text()


def ask_as_a_proxy(port: int, url: str) -> None:
    """Send a request whose target is a whole URL, as HTTP allows."""
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_SECONDS) as connection:
        connection.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while connection.recv(1 << 16):
            pass


@pytest.mark.parametrize("operator", ["X-Forwarded-User", "Remote-User"])
async def test_what_a_client_says_of_its_address_or_its_name_reaches_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    monkeypatch.setenv("ORDERSAGA_OPERATOR_HEADER", operator)
    monkeypatch.setenv("ORDERSAGA_OPERATOR_ROLES_HEADER", "Remote-Groups")
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Proto": "https"}
    forged |= {operator: "mallory", "Remote-Groups": "admin", "X-Request-Id": "passed-on"}
    with scripted([GOOD]) as server:
        async with (
            haproxy(tmp_path, server.url.removeprefix("http://")) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            await client.get(f"{url}/orders", headers=forged)
    [received] = server.requests
    passed_on = {name: received.headers[name.lower()] for name in forged if name.lower() in received.headers}
    assert passed_on == {"X-Forwarded-For": "127.0.0.1", "X-Request-Id": "passed-on"}
