"""HTTPS: limits from the first byte, client certificates, and certificates that change while requests run."""

import asyncio
import datetime as dt
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from operations.console.upstream import Services, Unavailable
from operations.load.connection import Connection, NoAnswerError, NotSentError
from operations.stack.services import probe_readiness
from shared import tls
from shared.errors import StartError
from shared.http_protocol import SPARE_CONNECTIONS
from shared.watched_files import WatchedFiles
from tests.support.certificates import Certificates, Pair
from tests.support.eventually import eventually
from tests.support.http_servers import Server, read_answer, refused, running, soon, status_of

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
WITHIN = 60.0
NEVER = 600.0


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tls.CA_FILE, tls.CLIENT_CERT_FILE, tls.CLIENT_KEY_FILE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def pair(certificates: Certificates) -> Pair:
    return certificates.issue("server")


@pytest.fixture
def server(certificates: Certificates, pair: Pair) -> Iterator[Server]:
    """A server whose clients are as patient as they like."""
    context = tls.server_context(pair.certificate, pair.key, None)
    with running(context, trusting(certificates), head_seconds=NEVER) as started:
        yield started


def trusting(certificates: Certificates, pair: Pair | None = None) -> ssl.SSLContext:
    """A client's context that trusts the authority, and presents the certificate if there is one."""
    context = ssl.create_default_context(cafile=certificates.ca)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_requests_are_answered_and_connections_kept(server: Server) -> None:
    client = server.send(GET)
    assert b"200 OK" in read_answer(client)
    client.sendall(GET)
    assert b"200 OK" in read_answer(client)
    large = server.send(b"GET /?bytes=3000000 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(read_answer(large)) > 3_000_000
    assert server.application.seen[0]["headers"] == {"host": "x"}


def test_tls_is_1_2_or_later(server: Server, certificates: Certificates) -> None:
    assert server.connect().version() == "TLSv1.3"  # type: ignore[attr-defined]
    old = trusting(certificates)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    server.client_context = old
    assert server.connect().version() == "TLSv1.2"  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        server.connect()


def test_a_client_without_tls_gets_no_answer_and_is_counted(server: Server) -> None:
    before = refused("tls_handshake")
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(GET)
        plain.settimeout(WITHIN)
        answer = plain.recv(1000)
    assert not answer.startswith(b"HTTP")
    soon(lambda: refused("tls_handshake") == before + 1, "the refusal")
    assert server.status() == 200


def test_connections_without_a_handshake_count_and_the_oldest_makes_room(
    certificates: Certificates, pair: Pair
) -> None:
    context = tls.server_context(pair.certificate, pair.key, None)
    with running(context, trusting(certificates), connections=5, head_seconds=NEVER) as server:
        displaced = refused("displaced")
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        try:
            soon(lambda: refused("displaced") >= displaced + 15, "the oldest to be displaced")
            assert server.status() == 200
            silent[0].settimeout(WITHIN)
            assert silent[0].recv(1) == b""
        finally:
            for client in silent:
                client.close()


def test_a_connection_that_waits_for_an_answer_keeps_its_place(certificates: Certificates, pair: Pair) -> None:
    context = tls.server_context(pair.certificate, pair.key, None)
    with running(context, trusting(certificates), connections=2, head_seconds=NEVER) as server:
        waiting = [server.send(b"GET /?held HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for _ in range(2)]
        soon(lambda: server.application.begun == 2, "both requests to begin")
        assert server.status() == 503
        over = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(SPARE_CONNECTIONS + 5)]
        server.application.released.set()
        assert [status_of(client) for client in waiting] == [200, 200]
        for client in over:
            client.close()


def test_a_handshake_that_takes_too_long_is_ended(certificates: Certificates, pair: Pair) -> None:
    context = tls.server_context(pair.certificate, pair.key, None)
    before = refused("tls_handshake")
    with running(context, trusting(certificates), head_seconds=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.settimeout(WITHIN)
            slow.sendall(b"\x16\x03\x01")
            assert slow.recv(1) == b""
        soon(lambda: refused("tls_handshake") == before + 1, "the refusal")


def test_the_server_stops_while_a_handshake_is_not_complete(certificates: Certificates, pair: Pair) -> None:
    context = tls.server_context(pair.certificate, pair.key, None)
    with running(context, trusting(certificates), head_seconds=NEVER) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        assert server.status() == 200
    silent.settimeout(WITHIN)
    assert silent.recv(1) == b""
    silent.close()


def test_a_client_certificate_can_be_required(certificates: Certificates, pair: Pair, tmp_path: Path) -> None:
    tmp_path.joinpath("clients").mkdir()
    tmp_path.joinpath("strangers").mkdir()
    clients, strangers = Certificates(tmp_path / "clients"), Certificates(tmp_path / "strangers")
    context = tls.server_context(pair.certificate, pair.key, clients.ca)
    with running(context, trusting(certificates, clients.issue("shop", "shop")), head_seconds=NEVER) as server:
        assert server.status() == 200
        for other in (None, strangers.issue("thief", "shop")):
            server.client_context = trusting(certificates, other)
            assert status_of(server.send(LAST_GET)) == 0
        assert len(server.application.seen) == 1


# --- Rotation. ---


def serial(server: Server) -> int:
    """The serial number of the certificate that a new connection gets."""
    client = server.connect()
    assert isinstance(client, ssl.SSLSocket)
    certificate = client.getpeercert() or {}
    client.close()
    return int(str(certificate["serialNumber"]), 16)


async def test_a_new_certificate_is_used_by_new_connections_while_requests_run(
    certificates: Certificates, pair: Pair
) -> None:
    context = tls.server_context(pair.certificate, pair.key, None)
    with running(context, trusting(certificates), head_seconds=NEVER) as server:
        kept = server.send(GET)
        read_answer(kept)
        first = serial(server)
        stop, statuses = asyncio.Event(), list[int]()

        async def ask() -> None:
            """Send requests over new and kept connections."""
            async with httpx.AsyncClient(verify=trusting(certificates)) as client:
                while not stop.is_set():
                    url = f"https://127.0.0.1:{server.port}/?bytes=20000"
                    statuses.append((await client.get(url)).status_code)
                    last = {"Connection": "close"}
                    statuses.append((await client.get(url, headers=last)).status_code)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        certificates.issue("server")
        await eventually(lambda: serial(server) != first, WITHIN, "the new certificate")
        stop.set()
        await asyncio.gather(*asking)
        assert len(statuses) > 8
        assert set(statuses) == {200}
        kept.sendall(GET)
        assert b"200 OK" in read_answer(kept)


def test_a_broken_new_pair_leaves_the_old_one_in_use_and_is_logged_once(certificates: Certificates, pair: Pair) -> None:
    now = 0.0
    read = WatchedFiles(
        [pair.certificate, pair.key],
        lambda: tls._read_server_files(pair.certificate, pair.key, None),
        "server certificate",
        clock=lambda: now,
    )
    first = read.current()
    structlog.reset_defaults()
    with capture_logs() as logged:
        key = pair.key.read_bytes()
        pair.key.write_bytes(certificates.issue("other").key.read_bytes())
        assert read.current() is first  # not yet checked
        for _ in range(5):
            now += 10
            assert read.current() is first
        pair.key.write_bytes(key)
        now += 10
        assert read.current() is not first
    assert [entry["log_level"] for entry in logged] == ["error", "info"]
    assert logged[0]["why"] == (
        f"{tls.CERT_FILE}={pair.certificate} and {tls.KEY_FILE}={pair.key} cannot be used: "
        "the key is not the one of the certificate"
    )


def test_files_that_change_one_after_the_other_are_no_error(certificates: Certificates, pair: Pair) -> None:
    now = 0.0
    read = WatchedFiles(
        [pair.certificate, pair.key],
        lambda: tls._read_server_files(pair.certificate, pair.key, None),
        "server certificate",
        clock=lambda: now,
    )
    first, new = read.current(), certificates.issue("new")
    structlog.reset_defaults()
    with capture_logs() as logged:
        for old, replacement in ((pair.certificate, new.certificate), (pair.key, new.key)):
            old.write_bytes(replacement.read_bytes())
            now += 10
            read.current()
    assert read.current() is not first
    assert [entry["log_level"] for entry in logged] == ["info"]


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (None, b"x", "cannot be read: No such file or directory"),
        (b"no PEM", b"no PEM", "a certificate chain and its key without a password are needed"),
    ],
)
def test_files_that_cannot_be_used_end_the_start(
    tmp_path: Path, certificate: bytes | None, key: bytes, reason: str
) -> None:
    for name, content in (("cert", certificate), ("key", key)):
        if content is not None:
            tmp_path.joinpath(name).write_bytes(content)
    with pytest.raises(StartError, match=reason) as raised:
        tls.server_context(tmp_path / "cert", tmp_path / "key", None)
    assert str(raised.value).startswith(f"{tls.CERT_FILE}={tmp_path}/cert ")


def test_a_key_with_a_password_is_refused_and_asks_nobody(pair: Pair) -> None:
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(pair.key.read_bytes(), None)
    locked = pem.BestAvailableEncryption(b"s3cret")
    pair.key.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked))
    with pytest.raises(StartError, match="without a password"):
        tls.server_context(pair.certificate, pair.key, None)


# --- Our clients. ---


async def failures(port: int) -> list[str]:
    """Why each of our clients cannot use the server; empty if all can."""
    url = f"https://127.0.0.1:{port}"
    found: list[str] = []
    services = Services({"order": url})
    problem = (await services.health("order")).problem
    await services.close()
    if problem is not None:
        found.append(problem)
    connection = Connection(url, "/orders")
    try:
        await connection.post(b"{}", 10)
    except (NotSentError, NoAnswerError) as error:
        found.append(str(error))
    connection.close()
    if (reason := await asyncio.to_thread(probe_readiness, url)) is not None:
        found.append(reason)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls.client_context())) as session:
        try:
            await (await session.get(url)).read()
        except aiohttp.ClientError as error:
            found.append(tls.plain_reason(str(error)))
    return found


async def test_our_clients_trust_the_ca_that_is_named_and_no_other(
    monkeypatch: pytest.MonkeyPatch, server: Server, certificates: Certificates
) -> None:
    reasons = await failures(server.port)
    assert len(reasons) == 4
    for reason in reasons:
        assert "its certificate is not from a trusted CA" in reason
        assert tls.CA_FILE in reason
        assert "\n" not in reason
    monkeypatch.setenv(tls.CA_FILE, str(certificates.ca))
    assert await failures(server.port) == []


@pytest.mark.parametrize(
    ("hosts", "age", "reason"),
    [
        (("elsewhere.example",), 1, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ((), -1, "certificate has expired"),
    ],
)
async def test_a_certificate_of_another_host_or_time_is_named_as_the_reason(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, hosts: tuple[str, ...], age: int, reason: str
) -> None:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=age)
    pair = certificates.issue("bad", *hosts, until=until)
    monkeypatch.setenv(tls.CA_FILE, str(certificates.ca))
    with running(tls.server_context(pair.certificate, pair.key, None)) as server:
        reasons = await failures(server.port)
    assert len(reasons) == 4
    assert all(f"its certificate is not accepted: {reason}" in one for one in reasons)


async def test_a_server_without_tls_is_named_as_the_reason() -> None:
    with running() as server:
        reasons = await failures(server.port)
    assert len(reasons) == 4
    assert all("it does not speak TLS on this port" in reason for reason in reasons)


async def test_our_clients_present_a_certificate_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, pair: Pair
) -> None:
    monkeypatch.setenv(tls.CA_FILE, str(certificates.ca))
    with running(tls.server_context(pair.certificate, pair.key, certificates.ca)) as server:
        assert len(await failures(server.port)) >= 3
        for name, value in certificates.issue("console", "console").client_settings().items():
            monkeypatch.setenv(name, value)
        assert await failures(server.port) == []


async def test_a_new_ca_is_trusted_by_the_next_connection_of_an_open_client(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path
) -> None:
    tmp_path.joinpath("new").mkdir()
    new = Certificates(tmp_path / "new")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(certificates.ca.read_bytes())
    monkeypatch.setenv(tls.CA_FILE, str(trusted))
    pair = new.issue("server")
    with running(tls.server_context(pair.certificate, pair.key, None)) as server:
        services = Services({"order": f"https://127.0.0.1:{server.port}"})
        refused_first = await services.get("order", "/")
        assert isinstance(refused_first, Unavailable)
        trusted.write_bytes(certificates.ca.read_bytes() + new.ca.read_bytes())

        async def answers() -> bool:
            return (await services.health("order")).problem is None

        await eventually(answers, WITHIN, "the new CA to be trusted")
        await services.close()


def test_a_client_certificate_without_its_key_is_refused(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    with pytest.raises(StartError, match="must be set together"):
        tls.client_context({tls.CLIENT_CERT_FILE: str(pair.certificate)})


def test_a_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("ca").write_text("no certificates")
    with pytest.raises(StartError, match=f"{tls.CA_FILE}=.*/ca has no certificates as PEM"):
        tls.client_context({tls.CA_FILE: str(tmp_path / "ca")})


def test_the_synchronous_client_works_over_one_connection(
    monkeypatch: pytest.MonkeyPatch, server: Server, certificates: Certificates
) -> None:
    context = tls.client_context({tls.CA_FILE: str(certificates.ca)})
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=WITHIN)
    for _ in range(2):
        connection.request("GET", "/")
        assert connection.getresponse().read()
    connection.close()
