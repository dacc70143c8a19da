"""The TLS overlay against docker-compose.yml, and the certificates that its script makes."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import tls
from shared.services import SERVICES
from tests.compose.stack import compose_command
from tests.support.compose_files import compose_services

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "tls"
OVERLAY = DIRECTORY / "docker-compose.tls.yml"


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return compose_services("docker-compose.yml")


@pytest.fixture(scope="module")
def overlay() -> dict[str, Any]:
    return compose_services("deploy/tls/docker-compose.tls.yml")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "certificates"
    subprocess.run([DIRECTORY / "make-certificates", directory, "shop.example"], check=True, capture_output=True)
    return directory


def test_the_overlay_adds_to_services_that_exist_and_leaves_no_service_without_tls(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    # The simulator connects to nothing, and the profile monitoring speaks no TLS, as docs/monitoring.md says.
    without = {name for name, service in base.items() if service.get("profiles") in (["simulator"], ["monitoring"])}
    assert overlay.keys() == base.keys() - without
    assert overlay.keys() >= SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reaches_the_same_servers_and_services_over_tls(
    name: str, base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    plain, secured = base[name]["environment"], overlay[name]["environment"]
    urls = {key: url for key, url in plain.items() if url and url.startswith("http://")}
    assert len(urls) == len(SERVICES)
    assert {key: secured[key] for key in urls} == {key: url.replace("http://", "https://") for key, url in urls.items()}


def test_the_servers_are_prepared_over_tls(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    assert overlay["credentials"]["command"] == [*base["credentials"]["command"], "--tls"]
    *plain, url = base["database"]["command"]
    *secured, secured_url = overlay["database"]["command"]
    assert secured == plain
    assert secured_url == f"{url}&tls=true&tlsCAFile=/certificates/ca.pem"


def test_mongod_keeps_its_other_arguments(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    plain, secured = base["mongo"]["command"], overlay["mongo"]["command"]
    assert secured[: len(plain)] == plain
    assert secured[len(plain) : len(plain) + 2] == ["--tlsMode", "requireTLS"]


def test_every_file_that_is_named_is_made(overlay: dict[str, Any], certificates: Path) -> None:
    texts = (OVERLAY.read_text(), (DIRECTORY / "rabbitmq.conf").read_text())
    named = {
        Path(word.strip(',]"&')).name
        for text in texts
        for word in text.replace("=", " ").split()
        if "/certificates/" in word
    }
    assert named == {"service.pem", "service.key", "ca.pem", "mongodb.pem", "rabbitmq.pem", "rabbitmq.key"}
    assert named == {path.name for path in certificates.iterdir()}  # the authority's key is elsewhere
    assert (certificates.parent / "certificates-authority" / "ca.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", [*SERVICES, "localhost", "127.0.0.1", "shop.example"])
def test_the_services_certificate_is_valid_for_all_their_names(name: str, certificates: Path) -> None:
    context = tls.server_context(certificates / "service.pem", certificates / "service.key", None)()
    assert _accepted(context, certificates, name)


def test_the_servers_certificates_are_valid_for_their_names_only(certificates: Path) -> None:
    for file, name in (("rabbitmq", "rabbitmq"), ("mongodb", "mongo")):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = certificates / f"{file}.key"
        context.load_cert_chain(certificates / f"{file}.pem", key if key.exists() else None)
        assert _accepted(context, certificates, name)
        assert not _accepted(context, certificates, "order")


def _accepted(context: ssl.SSLContext, certificates: Path, name: str) -> bool:
    """Whether a client that trusts the authority accepts the server under this name."""
    ours, theirs = socket.socketpair()
    client = tls.client_context({tls.CA_FILE: str(certificates / "ca.pem")})
    server = threading.Thread(target=_serve, args=(context, theirs))
    server.start()
    try:
        with client.wrap_socket(ours, server_hostname=name):
            return True
    except ssl.SSLCertVerificationError:
        return False
    finally:
        ours.close()
        server.join()


def _serve(context: ssl.SSLContext, connection: socket.socket) -> None:
    try:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)
    except OSError:
        connection.close()


def test_what_exists_is_kept_and_what_is_missing_is_made_again(certificates: Path) -> None:
    before = {path.name: path.read_bytes() for path in certificates.iterdir()}
    (certificates / "service.pem").unlink()
    subprocess.run([DIRECTORY / "make-certificates", certificates], check=True, capture_output=True)
    changed = {name for name, content in before.items() if (certificates / name).read_bytes() != content}
    assert changed == {"service.pem", "service.key"}
    assert not list(certificates.glob("*.new"))


def test_compose_accepts_both_files_together() -> None:
    command = compose_command()
    if command is None:
        return  # nothing here reads Compose files
    files = ("--file", str(ROOT / "docker-compose.yml"), "--file", str(OVERLAY))
    done = subprocess.run([*command, *files, "config"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    merged = yaml.safe_load(done.stdout)["services"]
    for name in ("mongo", "rabbitmq"):
        assert len(merged[name]["volumes"]) >= 2, "its data and its certificates"
