"""Limits of requests: which caller is counted, what it is told, and whose addresses are believed."""

import ipaddress
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.access import limits as limiting
from shared.access.errors import TooManyRequestsError
from shared.access.limits import RequestLimits, client_address, counted_address, parse_limit
from shared.access.middleware import requires
from shared.access.permissions import Permission, Role
from shared.http import add_routes, create_app, new_router
from tests.support.access import RING, bearer, key_authenticator

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))


def scope(client: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return {"type": "http", "client": (client, 1) if client else None, "headers": headers}


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1", "10.0.0.2"), "198.51.100.1"),
        ("10.0.0.1", ("10.0.0.3",), "10.0.0.3"),
        ("10.0.0.1", ("no address",), "no address"),
        ("10.0.0.1", (), "10.0.0.1"),
        (None, (), "unknown"),
    ],
)
def test_only_a_trusted_proxy_says_where_a_request_comes_from(
    client: str | None, forwarded: tuple[str, ...], address: str
) -> None:
    assert client_address(scope(client, *forwarded), PROXIES) == address


def test_without_a_trusted_proxy_nothing_but_the_connection_counts() -> None:
    assert client_address(scope("10.0.0.1", "198.51.100.1"), ()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("no address", "no address"),
    ],
)
def test_an_attacker_with_a_whole_network_is_counted_once(address: str, counted: str) -> None:
    assert counted_address(address) == counted


@pytest.mark.parametrize("text", ["many", "600", "600/fortnight", "-1/minute"])
def test_a_limit_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 600/minute"):
        parse_limit(text)


async def test_callers_beyond_the_count_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "MAX_COUNTED", 3)
    limits = RequestLimits(None, parse_limit("2/minute"))
    for number in range(3):
        await limits.count_failure(scope(f"203.0.113.{number}"))
    await limits.count_failure(scope("203.0.113.100"))
    await limits.count_failure(scope("203.0.113.101"))
    with pytest.raises(TooManyRequestsError):
        await limits.count_failure(scope("203.0.113.102"))
    await limits.count_failure(scope("203.0.113.1"))


# --- Over HTTP. ---


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async def ready() -> dict[str, str]:
        return {}

    router = new_router("things")

    @router.post("/things")
    @requires(Permission.CATALOGUE_READ)
    async def post(body: dict[str, int]) -> int:
        return len(body)

    limits = RequestLimits(parse_limit("5/minute"), parse_limit("3/minute"))
    app = create_app("test", "A test", ready, authenticator=key_authenticator(), limits=limits)
    add_routes(app.router, router)
    transport = httpx.ASGITransport(app, client=("203.0.113.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened


async def test_a_caller_is_told_what_is_left_and_when_to_come_back(client: httpx.AsyncClient) -> None:
    headers = bearer(RING.add(Role.CLIENT, "shop"))
    answers = [await client.post("/things", json={}, headers=headers) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[0].headers["ratelimit-policy"] == '"principal";q=5;w=60'
    assert answers[0].headers["ratelimit"].startswith('"principal";r=4;t=')
    refused = answers[-1]
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"].startswith("You may send 5 per 1 minute; try again in")

    another = await client.post("/things", json={}, headers=bearer(RING.add(Role.CLIENT, "another")))
    assert another.status_code == 200


async def test_an_admin_is_not_limited(client: httpx.AsyncClient) -> None:
    headers = bearer(RING.add(Role.ADMIN))
    answers = [await client.post("/things", json={}, headers=headers) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[0].headers


async def test_guessing_is_slowed_down_but_who_has_a_key_is_served_from_the_same_address(
    client: httpx.AsyncClient,
) -> None:
    guesses = [await client.get("/me", headers=bearer("osk_wrong")) for _ in range(5)]
    assert [answer.status_code for answer in guesses] == [401] * 3 + [429] * 2
    assert "retry-after" in guesses[-1].headers
    assert (await client.get("/me")).status_code == 429
    assert (await client.get("/me", headers=bearer(RING.add(Role.CLIENT, "shop")))).status_code == 200
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [({}, "Bearer"), (bearer("osk_wrong"), 'Bearer error="invalid_token"')],
)
async def test_a_challenge_names_an_error_only_where_there_was_a_credential(
    client: httpx.AsyncClient, headers: dict[str, str], challenge: str
) -> None:
    answer = await client.get("/me", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, challenge)


async def test_two_credentials_are_refused_because_it_is_not_clear_which_counts(client: httpx.AsyncClient) -> None:
    key = RING.add(Role.CLIENT, "shop")
    answer = await client.get("/me", headers=[("Authorization", f"Bearer {key}")] * 2)
    assert answer.status_code == 401
    assert answer.json()["detail"] == "The request has the header authorization 2 times"


async def test_a_key_in_the_address_counts_for_nothing(client: httpx.AsyncClient) -> None:
    key = RING.add(Role.ADMIN)
    assert (await client.get("/me", params={"access_token": key})).status_code == 401
