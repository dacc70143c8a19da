"""What client developers read runs as it stands: the examples of the Python client's README, and those in examples/."""

import asyncio
import contextlib
import io
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.access.permissions import Role
from tests.support.access import KEYS
from tests.support.processes import Stack, run_stack
from tests.support.servers import Servers, delete_topology

ROOT = Path(__file__).parents[2]
README = ROOT / "clients/python/README.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
EXAMPLES = [(code, printed) for code, printed in EXAMPLE.findall(README.read_text())]
SECONDS = 120
"""For a program that ends by itself, on a slow machine."""


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """A stack with a product p1 at 9.95, used by a shop's backend: its key is in the environment, as are the URLs."""
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, "t-clients") as running:
        await running.start("order", "inventory", "payment")
        product = await running.client.put(
            f"{running.url('inventory')}/products/p1", json={"kind": "goods", "price": 9.95}
        )
        assert product.is_success, product.text
        await running.stock("p1", 100)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ORDERSAGA_ORDER_URL", running.url("order"))
            patch.setenv("ORDERSAGA_API_KEY", KEYS[Role.CLIENT])
            yield running
        await running.assert_books_balance()
    await delete_topology(servers.amqp_url)


async def run(*command: str, **variables: str) -> tuple[int | None, str]:
    """Run a program to its end; its exit status and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, printed.decode()


def execute(code: str) -> str:
    """Run an example; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.usefixtures("stack")
async def test_the_examples_of_the_readme_print_what_it_says() -> None:
    assert len(EXAMPLES) == 6
    for code, printed in EXAMPLES:
        assert await asyncio.to_thread(execute, code) == printed


@pytest.mark.usefixtures("stack")
async def test_the_walk_with_curl_succeeds() -> None:
    status, printed = await run("examples/orders.sh")
    assert status == 0, printed
    for expected in (
        '"name":"client of tests"',
        "event: order.confirmed",
        "still ",
        "The card was declined",
        "\n422",
        "\n409",
    ):
        assert expected in printed


@pytest.mark.usefixtures("stack")
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_the_walk_with_javascript_succeeds() -> None:
    status, printed = await run("node", "examples/orders.mjs")
    assert status == 0, printed
    assert re.fullmatch(
        r"placed \S+\norder\.created PENDING\n(?:.*\n)*order\.confirmed CONFIRMED\n(?:.*\n)*422 items, totalAmount\n",
        printed,
    ), printed
