"""What haproxy repeats with the configuration in deploy/scale, and what it answers itself."""

import asyncio
import contextlib
import os
import re
import shutil
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
WITHIN_SECONDS = 60
KEY = {"Idempotency-Key": "cart-4711"}
BUSY, GOOD = answer(503, {"title": "busy"}), answer(202, {"orderId": "1"})


@contextlib.asynccontextmanager
async def haproxy(directory: Path, server: str) -> AsyncIterator[str]:
    """Run it for the order service alone, with one server at an address, and without health checks."""
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
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await eventually(lambda: asyncio.to_thread(listens, port), WITHIN_SECONDS, "haproxy to listen")
            yield f"http://127.0.0.1:{port}/orders"
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


def listens(port: int) -> bool:
    subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], check=True, capture_output=True)
    return True


@pytest.mark.parametrize(
    ("method", "headers", "script", "status", "sent"),
    [
        ("POST", KEY, [RESET, GOOD], 202, 2),
        ("POST", KEY, [BUSY, GOOD], 202, 2),
        ("GET", {}, [RESET, BUSY, GOOD], 202, 3),
        ("POST", {}, [RESET, GOOD], 502, 1),
        ("POST", {}, [BUSY, GOOD], 503, 1),
        ("POST", KEY, [BUSY, BUSY, BUSY, GOOD], 503, 3),
    ],
)
async def test_only_what_may_be_repeated_is_repeated(
    tmp_path: Path, method: str, headers: dict[str, str], script: list[Part], status: int, sent: int
) -> None:
    with scripted(script) as server:
        async with (
            haproxy(tmp_path, server.url.removeprefix("http://")) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            answered = await client.request(method, url, headers=headers)
    assert (answered.status_code, len(server.requests)) == (status, sent)
    assert answered.headers["content-type"].startswith("application/")


async def test_it_refuses_as_a_service_does_when_there_is_none(tmp_path: Path) -> None:
    with PortClaims() as claims:
        async with (
            haproxy(tmp_path, f"127.0.0.1:{claims.claim_free()}") as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            answered = await client.post(url)
    assert (answered.status_code, answered.headers["retry-after"]) == (503, "1")
    assert (answered.json()["type"], answered.json()["title"]) == (UNAVAILABLE.uri, UNAVAILABLE.title)
