"""gRPC of the order service without a server: its extra, its amounts, and the limits of a status."""

import sys
from http import HTTPStatus

import pytest
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from order_service.__main__ import grpc_server
from order_service.rpc.calls import _client
from order_service.rpc.failures import CODES, Failure, failure_of
from order_service.rpc.messages import amount_text, field_path
from order_service.settings import OrderSettings
from shared import problems
from shared.access.errors import CredentialMissingError, IssuerUnavailableError
from shared.errors import BusUnavailableError, NewerOrderError, StartError
from shared.settings import load


def test_without_its_extra_the_start_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("order_service.rpc.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(StartError) as raised:
        grpc_server(OrderSettings(grpc_port=3018), *[None] * 5)  # type: ignore[arg-type]
    assert str(raised.value) == "ORDERSAGA_GRPC_PORT=3018 needs the optional extra: pip install 'ordersaga[grpc]'"


@pytest.mark.parametrize(("value", "port"), [("3018", 3018), ("", None), (None, None)])
def test_the_port_is_off_by_default(monkeypatch: pytest.MonkeyPatch, value: str | None, port: int | None) -> None:
    if value is not None:
        monkeypatch.setenv("ORDERSAGA_GRPC_PORT", value)
    assert load(OrderSettings).grpc_port == port


@pytest.mark.parametrize("value", ["0", "65536", "x"])
def test_a_wrong_port_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ORDERSAGA_GRPC_PORT", value)
    with pytest.raises(StartError, match=f"ORDERSAGA_GRPC_PORT='{value}' is not valid"):
        load(OrderSettings)


@pytest.mark.parametrize(
    ("number", "text"), [(10, "10.00"), (19.9, "19.90"), (0.05, "0.05"), (0, "0.00"), (10**12, "1000000000000.00")]
)
def test_amounts_have_two_decimals(number: float, text: str) -> None:
    assert amount_text(number) == text


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("items[0].productId", "items[0].product_id"),
        ("items[3].options", "items[3].options_json"),
        ("delivery.address.postalCode", "delivery.address.postal_code"),
        ("metadata.camelCase", "metadata.camelCase"),
        ("totalAmount", "total_amount"),
    ],
)
def test_fields_are_named_as_in_the_contract(name: str, path: str) -> None:
    assert field_path(name) == path


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("unix:/tmp/socket", None),
    ],
)
def test_the_client_of_a_call_is_its_peer(peer: str, client: tuple[str, int] | None) -> None:
    assert _client(peer) == client


def test_every_problem_of_the_http_api_has_a_status() -> None:
    of_http_alone = {
        *(HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        *(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.MISDIRECTED_REQUEST,
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
    }
    assert {kind.status for kind in problems.PROBLEM_TYPES.values()} - of_http_alone <= CODES.keys()


def test_errors_become_statuses_and_defects_do_not() -> None:
    ends = {
        (end.code, end.reason)
        for error in (CredentialMissingError("x"), IssuerUnavailableError("x"), BusUnavailableError("x"))
        if (end := failure_of(error))
    }
    assert ends == {
        (StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"),
        (StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE"),
    }
    assert failure_of(NewerOrderError("x")) == Failure(problems.UNAVAILABLE, "x", retry_after=1)
    assert failure_of(KeyError("x")) is None


def test_a_status_fits_into_the_headers_that_clients_accept() -> None:
    violations = tuple((f"items[{number}].productId", "ü" * 500) for number in range(100))
    failure = Failure(problems.INVALID_REQUEST, "ü" * 5000, violations)
    assert len(failure.details()) < 4000
    assert Status.FromString(failure.details()).message == failure.message
