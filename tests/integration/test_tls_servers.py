"""MongoDB and RabbitMQ over TLS: real servers with right, wrong, expired and replaced certificates."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.errors import PyMongoError

from operations.doctor.broker import check_broker
from operations.doctor.database import check_database
from operations.errors import UnreachableError
from operations.reading.broker import count_messages
from operations.reading.connection import open_bus, open_mongodb
from operations.reading.reachability import amqp_missing, mongodb_missing
from shared import database, tls
from shared.bus import Envelope
from shared.bus.rabbitmq import RabbitBus
from shared.errors import BusUnavailableError, StartError
from shared.settings import ServiceSettings, load
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.processes import run_stack
from tests.support.tls_servers import TlsServers, tls_servers

WITHIN = 60.0
UNKNOWN_YET = "No replica set members found yet"
"""What the driver says while no member has answered, also before any was asked."""
VARIABLES = (tls.CA_FILE, tls.CERT_FILE, tls.KEY_FILE, tls.CLIENT_CERT_FILE, tls.CLIENT_KEY_FILE, tls.CLIENT_CA_FILE)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[TlsServers]:
    async with tls_servers() as started:
        yield started


@pytest.fixture
async def secured(running: TlsServers, monkeypatch: pytest.MonkeyPatch) -> TlsServers:
    """Both servers, whose authority is trusted."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(tls.CA_FILE, str(running.certificates.ca))
    monkeypatch.setenv("ORDERSAGA_DATABASE_TIMEOUT_SECONDS", "1.5")
    return running


async def refusals(servers: TlsServers) -> list[str]:
    """Why our clients refuse the servers: for a service and for a command, with MongoDB and with RabbitMQ."""
    found = await asyncio.gather(
        _service_refusal(servers.mongodb_url, "pymongo"),
        _service_refusal(servers.mongodb_url, "motor"),
        _bus_refusal(servers.amqp_url),
        _reason(mongodb_missing(servers.mongodb_url)),
        _reason(amqp_missing(servers.amqp_url)),
    )
    return list(found)


async def _reason(missing: Awaitable[str | None]) -> str:
    return await missing or ""


async def _bus_refusal(url: str) -> str:
    bus = RabbitBus(url, publish_timeout=5)
    starting = asyncio.create_task(bus.start(None))
    await eventually(lambda: starting.done() or "not started" not in (bus.unhealthy_reason or ""), WITHIN, "an attempt")
    reason = bus.unhealthy_reason or ""
    await bus.close()
    starting.cancel()
    await asyncio.wait({starting})
    return reason


async def _service_refusal(url: str, driver: str) -> str:
    settings = load(ServiceSettings).model_copy(update={"mongodb_url": url, "mongo_driver": driver})
    client = database.client(settings)
    try:
        async with asyncio.timeout(WITHIN):
            while (reason := await _ping(client)) == UNKNOWN_YET:
                pass  # waits for the time limit of an operation, which a slow machine needs to connect
            return reason
    finally:
        await database.close(client)


async def _ping(client: Any) -> str:
    try:
        await client["x"].command("ping")
    except PyMongoError as error:
        return database.first_line(error)
    return ""


async def test_both_servers_are_used_over_tls_by_services_and_commands(secured: TlsServers, unique_id: str) -> None:
    assert await refusals(secured) == ["", "", "", "", ""]
    async with open_mongodb(secured.mongodb_url, purpose="the test", name="test") as client:
        assert await client[f"t{unique_id}"]["things"].insert_one({"_id": 1})
        await client.drop_database(f"t{unique_id}")
    async with open_bus(secured.amqp_url, "order.inbox", name="test") as bus:
        body = Envelope(b"{}", "ordersaga", "order.created", "order.created", unique_id, unique_id, mandatory=False)
        await bus.publish([body])
        assert bus.unhealthy_reason is None
    assert (await count_messages(secured.amqp_url))["order.inbox"] == 0
    findings = [finding async for finding in check_database(secured.mongodb_url, f"t{unique_id}", [])]
    findings += [finding async for finding in check_broker(secured.amqp_url, None)]
    assert [finding for finding in findings if finding.outcome == "wrong"] == []


async def test_a_server_with_another_ca_is_refused_with_a_clear_reason(
    secured: TlsServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(tls.CA_FILE, str(Certificates(tmp_path).ca))
    for reason in await refusals(secured):
        assert "its certificate is not from a trusted CA" in reason
        assert tls.CA_FILE in reason
        assert "guest:guest" not in reason
        assert "\n" not in reason
    monkeypatch.delenv(tls.CA_FILE)  # then the CAs of the system are trusted
    for reason in await refusals(secured):
        assert "its certificate is not from a trusted CA" in reason


async def test_the_doctor_names_the_certificate_as_the_reason(
    secured: TlsServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(tls.CA_FILE, str(Certificates(tmp_path).ca))
    findings = [finding async for finding in check_broker(secured.amqp_url, None)]
    findings += [finding async for finding in check_database(secured.mongodb_url, "t", [])]
    assert [finding.outcome for finding in findings] == ["wrong", "wrong"]
    assert all("not from a trusted CA" in finding.detail for finding in findings)
    with pytest.raises(UnreachableError, match="not from a trusted CA"):
        await count_messages(secured.amqp_url)


async def test_the_certificate_of_another_host_and_an_expired_one_are_refused(secured: TlsServers) -> None:
    try:
        await secured.present("elsewhere.example")
        for reason in await refusals(secured):
            assert "its certificate is not accepted: IP address mismatch" in reason
        # mongod takes no certificate that has expired, but one that is about to.
        await secured.present(until=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5))

        async def has_expired() -> bool:
            return all("certificate has expired" in reason for reason in await refusals(secured))

        await eventually(has_expired, WITHIN, "both certificates to expire")
    finally:
        await secured.present()
    assert await refusals(secured) == ["", "", "", "", ""]


async def test_a_client_without_tls_is_not_served_and_tls_needs_a_server_that_speaks_it(secured: TlsServers) -> None:
    plain = secured.mongodb_url.replace("&tls=true", "")
    assert "connection closed" in (await mongodb_missing(plain) or "")
    without = secured.amqp_url.replace("amqps://", "amqp://")
    assert "does not answer" in (await amqp_missing(without) or "")
    bus = RabbitBus(without, publish_timeout=5)
    starting = asyncio.create_task(bus.start(None))
    await eventually(lambda: "amqps://" in (bus.unhealthy_reason or ""), WITHIN, "a hint")
    await bus.close()
    starting.cancel()
    with_tls = secured.broker.url.replace("amqp://", "amqps://")
    assert await amqp_missing(with_tls) == "does not answer: it does not speak TLS on this port"


async def test_certificates_named_in_the_url_are_used_instead(
    secured: TlsServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = secured.certificates.ca
    monkeypatch.setenv(tls.CA_FILE, str(Certificates(tmp_path).ca))
    assert await mongodb_missing(f"{secured.mongodb_url}&tlsCAFile={ca}") is None
    assert await amqp_missing(f"{secured.amqp_url}?cafile={ca}") is None


async def test_an_open_client_uses_a_replaced_ca_for_its_next_connections(
    secured: TlsServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    tmp_path.joinpath("other").mkdir()
    trusted.write_bytes(Certificates(tmp_path / "other").ca.read_bytes())
    monkeypatch.setenv(tls.CA_FILE, str(trusted))
    settings = load(ServiceSettings).model_copy(update={"mongodb_url": secured.mongodb_url})
    client = database.client(settings)
    bus = RabbitBus(secured.amqp_url, publish_timeout=5)
    starting = asyncio.create_task(bus.start(None))
    with pytest.raises(PyMongoError):
        await client["x"].command("ping")
    trusted.write_bytes(secured.certificates.ca.read_bytes())
    await eventually(lambda: client["x"].command("ping"), WITHIN, "MongoDB")
    await eventually(lambda: bus.unhealthy_reason is None, WITHIN, "RabbitMQ")
    await starting
    await bus.close()
    await database.close(client)


async def test_a_service_runs_over_tls_alone_and_names_what_is_wrong(
    secured: TlsServers, unique_id: str, tmp_path: Path
) -> None:
    pair = secured.certificates.issue("service")
    settings = {"tls_ca_file": secured.certificates.ca, "tls_cert_file": pair.certificate, "tls_key_file": pair.key}
    async with run_stack(secured.mongodb_url, secured.amqp_url, f"t{unique_id}", **settings) as stack:
        verified = ssl.create_default_context(cafile=secured.certificates.ca)
        process = await stack.launch("inventory")
        stranger = await stack.launch("payment", tls_ca_file=Certificates(tmp_path).ca)
        async with httpx.AsyncClient(verify=verified) as client:

            async def ready() -> bool:
                return (await client.get(f"{_https(process.url)}/readyz")).status_code == 200

            await eventually(ready, WITHIN, "the service to be ready")

            async def refusing() -> bool:
                answer = await client.get(f"{_https(stranger.url)}/readyz")
                return answer.status_code == 503 and "not from a trusted CA" in answer.text

            await eventually(refusing, WITHIN, "the reason in /readyz")
        assert not [line for line in stranger.output if "guest:guest" in line or "PRIVATE KEY" in line]
    async with open_mongodb(secured.mongodb_url, purpose="the test", name="test") as mongo:
        await mongo.drop_database(f"t{unique_id}_inventory")


def _https(url: str) -> str:
    return url.replace("http://", "https://")


async def test_a_service_with_a_certificate_file_that_is_missing_ends_with_one_line(
    secured: TlsServers, unique_id: str
) -> None:
    missing = {"tls_ca_file": "/nowhere/ca.pem"}
    async with run_stack(secured.mongodb_url, secured.amqp_url, f"t{unique_id}", **missing) as stack:
        process = await stack.launch("order")
        await eventually(lambda: not process.alive, WITHIN, "the process to end")
        await eventually(lambda: bool(process.output), WITHIN, "its line")
        assert process.output == ["ORDERSAGA_TLS_CA_FILE=/nowhere/ca.pem cannot be read: No such file or directory\n"]


def test_settings_that_belong_together_are_required_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in ((tls.CERT_FILE, "/c"), (tls.CLIENT_KEY_FILE, "/k"), (tls.CLIENT_CA_FILE, "/ca")):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            with pytest.raises(StartError, match="must be set t"):
                load(ServiceSettings)


async def test_a_bus_without_its_ca_file_says_so(secured: TlsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tls.CA_FILE, "/nowhere")
    bus = RabbitBus(secured.amqp_url)
    with pytest.raises(StartError, match="cannot be read"):
        await bus.start(None)
    with pytest.raises(BusUnavailableError):
        await bus.publish([])
    await bus.close()
