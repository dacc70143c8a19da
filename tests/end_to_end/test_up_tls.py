"""`ordersaga up` with HTTPS and required client certificates, and the commands and the console that use it."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.test_up_native import CommandLine
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.servers import Servers

HEALTH_CHECK = Path(__file__).parents[2] / "deploy" / "container" / "healthcheck.py"
WITHIN = 60.0


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    tmp_path.joinpath("certificates").mkdir()
    return Certificates(tmp_path / "certificates")


@pytest.fixture
def stack(
    tmp_path: Path, servers: Servers, database_prefix: str, clean_broker: str, certificates: Certificates
) -> Iterator[CommandLine]:
    """A stack on the servers of this test run, whose HTTP is TLS alone; the URLs are in files."""
    for name, url in (("mongodb", servers.mongodb_url), ("amqp", servers.amqp_url)):
        (tmp_path / name).write_text(f"{url}\n")
    settings = {
        "ORDERSAGA_MONGODB_URL_FILE": str(tmp_path / "mongodb"),
        "ORDERSAGA_AMQP_URL_FILE": str(tmp_path / "amqp"),
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        "ORDERSAGA_PAYMENT_FAILURE_RATE": "0",
        "ORDERSAGA_TLS_CA_FILE": str(certificates.ca),
        "ORDERSAGA_TLS_CLIENT_CA_FILE": str(certificates.ca),
        **certificates.issue("services").server_settings(),
        **certificates.issue("clients", "clients").client_settings(),
    }
    own = CommandLine(tmp_path, settings)
    yield own
    own.run("down")


async def test_a_stack_with_https_is_started_watched_loaded_and_shown(
    stack: CommandLine, certificates: Certificates
) -> None:
    await asyncio.to_thread(stack.must, "up", "--detach", "--only", "order,inventory,payment,console")
    shown = json.loads(await asyncio.to_thread(stack.must, "status", "--json"))
    urls = {process["name"]: process["url"] for process in shown["processes"]}
    assert all(url.startswith("https://127.0.0.1:") for url in urls.values())
    done = json.loads(await asyncio.to_thread(stack.must, "load", "--orders", "20", "--json"))
    assert (done["accepted"], done["unsettled"]) == (20, 0)

    context = ssl.create_default_context(cafile=certificates.ca)
    async with httpx.AsyncClient(verify=context) as stranger:
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await stranger.get(f"{urls['order']}/readyz")
    pair = certificates.issue("operator", "operator")
    context.load_cert_chain(pair.certificate, pair.key)
    async with httpx.AsyncClient(verify=context, headers=stack.headers) as client:

        async def overview_shows_services() -> bool:
            page = await client.get(f"{urls['console']}/")
            return page.status_code == 200 and "does not speak" not in page.text and "trusted CA" not in page.text

        await eventually(overview_shows_services, WITHIN, "the console's first page")

    port = urls["order"].rpartition(":")[2]
    checking = [sys.executable, str(HEALTH_CHECK), "/readyz"]
    environment = stack.environment | {"ORDERSAGA_HTTP_PORT": port}
    checked = await asyncio.to_thread(subprocess.run, checking, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    await a_command_without_the_ca_says_which_setting_is_missing(stack)


async def a_command_without_the_ca_says_which_setting_is_missing(stack: CommandLine) -> None:
    del stack.settings["ORDERSAGA_TLS_CA_FILE"]
    status = await asyncio.to_thread(stack.run, "status", "--json")
    assert status.returncode == 1
    for process in json.loads(status.stdout)["processes"]:
        assert "its certificate is not from a trusted CA" in process["detail"]
        assert "ORDERSAGA_TLS_CA_FILE names the CAs to trust" in process["detail"]
