"""Every route of every service, with every role and every kind of wrong credential, against the permission table.

The services are wired as their processes wire them, over a real MongoDB. A request that is allowed may be answered with
anything but 401 and 403: its parameters lead nowhere.
"""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI

from shared.access.authenticator import Authenticator
from shared.access.issuer import Issuer
from shared.access.permissions import Role
from shared.access.tokens import TokenVerifier
from shared.services import SERVICES
from tests.support.access import KeyRing, bearer
from tests.support.access_table import ServedRoute, guarded_routes
from tests.support.api_samples import wired
from tests.support.builders import connected
from tests.support.issuers import AUDIENCE, WRONG, MockIssuer, run_issuer

OURS = {"Sec-Fetch-Site": "same-origin"}
"""As a browser marks the requests of our own pages."""
EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[MockIssuer]:
    async with run_issuer() as running:
        yield running


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def app(
    service: str, issuer: MockIssuer, ring: KeyRing, mongodb_url: str, database_prefix: str
) -> AsyncIterator[FastAPI]:
    async with AsyncExitStack() as stack:
        name = SERVICES[service].database_in(database_prefix)
        database = await stack.enter_async_context(connected(mongodb_url, name))
        tokens = TokenVerifier(Issuer(issuer.url), AUDIENCE)
        yield wired(SERVICES[service], database, Authenticator(ring, tokens))


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=OURS) as opened:
        yield opened


async def status(client: httpx.AsyncClient, route: ServedRoute, headers: dict[str, str]) -> int:
    # The parameters are valid, so that nothing but the permission is in the way, and lead nowhere.
    path = re.sub(r"\{slot_id\}", "slot:1893456000", route.path)
    async with client.stream(route.method, re.sub(r"\{\w+\}", "x1", path), headers=headers) as answer:
        return answer.status_code


@EVERY_SERVICE
async def test_each_role_may_do_what_the_table_says_and_nothing_else(
    service: str, app: FastAPI, client: httpx.AsyncClient, ring: KeyRing
) -> None:
    keys = {role: ring.add(role, "shop", "u1" if role is Role.CUSTOMER else None) for role in Role}
    for route in guarded_routes(app):
        for role, key in keys.items():
            answered = await status(client, route, bearer(key))
            if route.reach(role) is None:
                assert answered == 403, f"{role}: {route}"
            else:
                assert answered not in (401, 403), f"{role}: {route} answers {answered}"


@EVERY_SERVICE
async def test_no_other_credential_opens_any_route(
    service: str, app: FastAPI, client: httpx.AsyncClient, ring: KeyRing, issuer: MockIssuer
) -> None:
    valid, revoked = ring.add(Role.ADMIN), ring.add(Role.ADMIN)
    ring.records[revoked[4:12]] = replace(ring.records[revoked[4:12]], revoked=datetime.now(UTC))
    mistyped = valid[:20] + ("a" if valid[20] != "a" else "b") + valid[21:]
    wrong = {
        "no credential": {},
        "a scheme that is not ours": {"Authorization": f"Basic {valid}"},
        "a mistyped key": bearer(mistyped),
        "an unknown key": bearer(KeyRing().add(Role.ADMIN)),
        "an expired key": bearer(ring.add(Role.ADMIN, expires=datetime.now(UTC) - timedelta(seconds=1))),
        "a revoked key": bearer(revoked),
        **{f"a token, {name}": bearer(make(issuer)) for name, (make, _) in WRONG.items()},
    }
    for route in guarded_routes(app):
        for name, headers in wrong.items():
            answered = await status(client, route, headers)
            # A person without a session is led to the page for signing in.
            assert answered == 401, f"{name}: {route} answers {answered}"


@EVERY_SERVICE
async def test_a_token_has_the_permissions_of_its_roles(
    service: str, app: FastAPI, client: httpx.AsyncClient, issuer: MockIssuer
) -> None:
    tokens = {role: issuer.token(roles=[role.value], sub="u1") for role in Role}
    for route in guarded_routes(app):
        for role, token in tokens.items():
            answered = await status(client, route, bearer(token))
            assert (answered == 403) == (route.reach(role) is None), f"{role}: {route} answers {answered}"


@EVERY_SERVICE
async def test_a_route_that_declares_nothing_is_refused_to_everybody(
    service: str, app: FastAPI, client: httpx.AsyncClient, ring: KeyRing
) -> None:
    @app.get("/undeclared")
    async def undeclared() -> str:
        return "open to all"

    app.router.routes.insert(0, app.router.routes.pop())  # the console's last route takes every address
    answer = await client.get("/undeclared", headers=bearer(ring.add(Role.ADMIN)))
    assert answer.status_code == 403
    assert "declares none" in answer.json()["detail"]
