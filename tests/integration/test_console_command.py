"""`ordersaga console` prints a link that works in the console that runs."""

import asyncio
import os
import subprocess

import httpx
import pytest

from shared.access.permissions import Role
from tests.support import warm_processes
from tests.support.access import ADMIN_KEY, KEYS
from tests.support.consoles import NOWHERE, OURS, console_dependencies, served


async def run(url: str, *words: str, key: str = ADMIN_KEY) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")} | {
        "ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/",
        "ORDERSAGA_AMQP_URL": "amqp://127.0.0.1:1/",
        "ORDERSAGA_CONSOLE_URL": url,
        "ORDERSAGA_API_KEY": key,
        "ORDERSAGA_OPERATOR": "ann",
    }
    return await asyncio.to_thread(
        lambda: warm_processes.run_in_thread("operations.cli", "console", *words, environment=environment, within=120)
    )


@pytest.mark.parametrize(
    ("words", "shown"), [((), "ann, admin"), (("--role", "viewer", "--name", "Zoë"), "Zoë</strong>, viewer")]
)
async def test_the_link_signs_in(
    mongodb_url: str, amqp_url: str, database_prefix: str, words: tuple[str, ...], shown: str
) -> None:
    async with (
        console_dependencies(mongodb_url, amqp_url, database_prefix) as dependencies,
        served(dependencies) as url,
    ):
        done = await run(url, *words)
        assert done.returncode == 0, done.stderr
        link = done.stdout.strip()
        assert link.startswith(f"{url}/sign-in/link?token=")
        async with httpx.AsyncClient(headers=OURS, trust_env=False) as client:
            entered = await client.post(f"{url}/sign-in/link", data={"token": link.partition("token=")[2]})
            assert entered.status_code == 303
            assert shown.replace("ann,", "ann</strong>,") in (await client.get(f"{url}/")).text


async def test_what_is_refused_is_explained(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    async with (
        console_dependencies(mongodb_url, amqp_url, database_prefix) as dependencies,
        served(dependencies) as url,
    ):
        refused = await run(url, key=KEYS[Role.OPERATOR])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "This needs keys:manage" in refused.stderr
        wrong = await run(url, "--role", "customer")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "'customer' is not one of accountant" in wrong.stderr
    away = await run(NOWHERE)
    assert away.returncode == 3
    assert f"the console at {NOWHERE} does not answer" in away.stderr
