"""TLS: the reasons in plain words, and that nothing connects without our certificates."""

import re
from pathlib import Path

import pytest

from shared import tls
from shared.services import SERVICES

ROOT = Path(__file__).parents[2]
PACKAGES = ("operations", "shared", *(service.package for service in SERVICES.values()))
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
LOCAL_MONGOD = ROOT / "operations" / "stack" / "mongod.py"
"""Starts a mongod on this machine, which has no TLS, and asks it alone."""


def test_every_connection_to_rabbitmq_uses_our_certificates() -> None:
    assert not [path for path in SOURCES if re.search(r"\baio_pika\.connect(_robust)?\(", path.read_text())]
    made = [path for path in SOURCES if "aio_pika.Connection(" in path.read_text()]
    assert len(made) >= 2
    assert all("amqp_context(" in path.read_text() for path in made)


def test_every_client_of_mongodb_uses_our_certificates() -> None:
    made = [path for path in SOURCES if re.search(r"MongoClient(\[[^(]*\])?\(", path.read_text())]
    assert len(made) >= 4
    assert all("with_our_tls(" in path.read_text() for path in made if path != LOCAL_MONGOD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get issuer certificate (_ssl.c:1)",
            "its certificate is not from a trusted CA (unable to get issuer certificate): "
            "ORDERSAGA_TLS_CA_FILE names the CAs to trust",
        ),
        (
            "x:1: certificate verify failed: Hostname mismatch, certificate is not valid for 'x'. (_ssl.c:1)",
            "its certificate is not accepted: Hostname mismatch, certificate is not valid for 'x'",
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1)", "it does not speak TLS on this port"),
        (
            "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:1)",
            f"it requires a client certificate: {tls.CLIENT_CERT_FILE} and {tls.CLIENT_KEY_FILE} name one",
        ),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:1)", "it refuses the client certificate"),
        ("Connection refused", "Connection refused"),
    ],
)
def test_the_reason_of_a_failed_handshake_is_told_in_plain_words(text: str, words: str) -> None:
    assert tls.plain_reason(text) == words


@pytest.mark.parametrize("url", ["amqp://h/", "amqps://h/?cafile=/ca", "amqps://h/?no_verify_ssl=1"])
def test_a_url_without_tls_or_with_certificates_of_its_own_gets_none_of_ours(url: str) -> None:
    assert tls.amqp_context(url) is None
