"""Sessions of people in the console: how they begin and end, whom they let in, and what each role is shown."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from ipaddress import ip_network
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.routing import Match

from operations.actions import list_actions
from operations.console import ConsoleDependencies, IdentityProxy
from operations.console.people import OPEN_PATHS, local_target
from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.sign_in.links import SignInLinks
from operations.sign_in.person import Person
from operations.sign_in.sessions import KEEP_SECONDS, SessionLimits, Sessions
from shared.access.permissions import STAFF, Role
from tests.support.access import ADMIN, KEYS, RING, bearer, key_authenticator
from tests.support.access_table import guarded_routes
from tests.support.consoles import (
    BASE,
    NO_SERVICES,
    OURS,
    Clock,
    a_letter,
    an_app,
    console_dependencies,
    record_letters,
    serve,
)
from tests.support.routes import routes_of

PAGE = {"Accept": "text/html"}
ANNA = Person("anna", "anna", frozenset({Role.OPERATOR}))


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, clock: Clock
) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, clock=clock) as found:
        yield found


@asynccontextmanager
async def browser(app: FastAPI, base: str = BASE, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends what a browser sends, and keeps cookies."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=OURS | PAGE | headers) as client:
        yield client


@pytest.fixture
async def visitor(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of somebody who is not signed in."""
    async with browser(an_app(dependencies)) as client:
        yield client


async def new_link(dependencies: ConsoleDependencies, person: Person = ANNA) -> str:
    secret, _ = await SignInLinks(dependencies.operations, dependencies.clock).create(person)
    return secret


async def sign_in(
    dependencies: ConsoleDependencies, client: httpx.AsyncClient, person: Person = ANNA
) -> httpx.Response:
    answer = await client.post("/sign-in/link", data={"token": await new_link(dependencies, person)})
    assert answer.status_code == 303, answer.text
    return answer


# --- Links. ---


async def test_a_link_signs_in_once_and_looking_at_it_does_not_use_it_up(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient
) -> None:
    created = await visitor.post("/sign-in/links", json={"name": "Ann Ω", "role": "viewer"}, headers=ADMIN)
    assert created.status_code == 201
    path = created.json()["path"]
    for _ in range(2):
        asked = await visitor.get(path)
        assert "Ann Ω</strong>, with the role viewer" in asked.text
    token = path.partition("token=")[2]
    assert (await visitor.get("/")).status_code == 303
    entered = await visitor.post("/sign-in/link", data={"token": token})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert "Signed in as <strong>Ann Ω</strong>, viewer" in (await visitor.get("/")).text
    for again in (await visitor.get(path), await visitor.post("/sign-in/link", data={"token": token})):
        assert again.status_code == 410
        assert "has been used or has expired" in again.text
    actions = [entry["action"] for entry in (await list_actions(dependencies.operations)).items]
    assert sorted(actions) == ["sign-in", "sign-in.link"]


async def test_a_link_is_valid_for_a_minute(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient, clock: Clock
) -> None:
    token = await new_link(dependencies)
    clock.now += timedelta(seconds=59)
    assert (await visitor.get("/sign-in/link", params={"token": token})).status_code == 200
    clock.now += timedelta(seconds=1)
    assert (await visitor.get("/sign-in/link", params={"token": token})).status_code == 410
    assert (await visitor.post("/sign-in/link", data={"token": token})).status_code == 410


async def test_only_who_manages_keys_creates_links_and_only_for_staff(visitor: httpx.AsyncClient) -> None:
    wanted = {"name": "ann", "role": "admin"}
    for role, key in KEYS.items():
        answer = await visitor.post("/sign-in/links", json=wanted, headers=bearer(key))
        assert answer.status_code == (201 if role is Role.ADMIN else 403), role
    refused = await visitor.post("/sign-in/links", json=wanted | {"role": "customer"}, headers=ADMIN)
    assert refused.status_code == 422
    assert "is 'customer', must be one of accountant, admin" in refused.json()["detail"]
    for name in ("", "x" * 129, "a\nb", "  "):
        assert (await visitor.post("/sign-in/links", json=wanted | {"name": name}, headers=ADMIN)).status_code == 422
    unasked = await visitor.post("/sign-in/links", json=wanted, headers=ADMIN | {"Sec-Fetch-Site": "cross-site"})
    assert unasked.status_code == 403


async def test_secrets_are_stored_as_hashes(dependencies: ConsoleDependencies, visitor: httpx.AsyncClient) -> None:
    token = await new_link(dependencies)
    await sign_in(dependencies, visitor)
    session = visitor.cookies["ordersaga"]
    assert len(session) >= 43
    for name in ("sessions", "sign_in_links", "actions"):
        stored = str(await dependencies.operations[name].find().to_list(None))
        assert stored != "[]"
        assert token not in stored
        assert session not in stored


# --- Sessions. ---


async def test_a_session_ends_when_it_is_idle_and_in_any_case_after_eight_hours(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient, clock: Clock
) -> None:
    await sign_in(dependencies, visitor)
    clock.now += timedelta(minutes=29)
    assert (await visitor.get("/")).status_code == 200
    # The page that is open asks by itself, which is no use of the session.
    clock.now += timedelta(minutes=29)
    assert (await visitor.get("/overview", headers={"HX-Request": "true"})).status_code == 200
    clock.now += timedelta(minutes=1)
    ended = await visitor.get("/")
    assert (ended.status_code, ended.headers["location"]) == (303, "/sign-in")

    await sign_in(dependencies, visitor)
    for _ in range(23):
        clock.now += timedelta(minutes=20)
        assert (await visitor.get("/")).status_code == 200
    clock.now += timedelta(minutes=20)
    assert (await visitor.get("/")).status_code == 303


async def test_sign_out_ends_the_session_on_the_server(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient
) -> None:
    await sign_in(dependencies, visitor)
    session = visitor.cookies["ordersaga"]
    assert (await visitor.get("/")).status_code == 200
    left = await visitor.post("/sign-out")
    assert (left.status_code, left.headers["location"]) == (303, "/sign-in")
    assert "ordersaga" not in visitor.cookies
    visitor.cookies.set("ordersaga", session)
    assert (await visitor.get("/")).status_code == 303
    assert [entry["by"] for entry in (await list_actions(dependencies.operations)).items] == ["anna", "anna"]


async def test_a_session_that_was_there_before_is_not_taken_over(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient
) -> None:
    """An attacker may set a cookie in somebody's browser; what counts after signing in is another one."""
    await sign_in(dependencies, visitor, Person("mallory", "mallory", frozenset({Role.VIEWER})))
    planted = visitor.cookies["ordersaga"]
    await sign_in(dependencies, visitor)
    assert visitor.cookies["ordersaga"] != planted
    assert "<strong>anna</strong>" in (await visitor.get("/")).text
    visitor.cookies.clear()
    for value in (planted, "chosen-by-an-attacker", ""):
        visitor.cookies.set("ordersaga", value)
        assert (await visitor.get("/")).status_code == 303


async def test_processes_share_sessions_and_a_touch_does_not_revive_one(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    seconds = [0.0]
    here, there = (Sessions(dependencies.operations, SessionLimits(), clock, lambda: seconds[0]) for _ in range(2))
    secret = await here.begin(ANNA)
    assert await there.find(secret) == ANNA
    await here.end(secret)
    assert await here.find(secret) is None
    # The other process still has it in memory, for a moment; a use within it does not store it again.
    clock.now += timedelta(minutes=5)
    await there.find(secret)
    seconds[0] += KEEP_SECONDS
    assert await there.find(secret) is None
    assert await dependencies.operations["sessions"].count_documents({}) == 0


async def test_the_cookie_is_for_this_host_alone(dependencies: ConsoleDependencies) -> None:
    app = an_app(dependencies)
    async with browser(app) as plain, browser(app, "https://127.0.0.1") as safe:
        cookie = (await sign_in(dependencies, plain)).headers["set-cookie"]
        assert re.fullmatch(r"ordersaga=\S+; HttpOnly; Path=/; SameSite=lax", cookie)
        cookie = (await sign_in(dependencies, safe)).headers["set-cookie"]
        assert re.fullmatch(r"__Host-ordersaga=\S+; HttpOnly; Path=/; SameSite=lax; Secure", cookie)
        assert (await safe.get("/")).status_code == 200
        # A name that anybody may set does not count over https.
        secret = safe.cookies["__Host-ordersaga"]
        safe.cookies.clear()
        safe.cookies.set("ordersaga", secret)
        assert (await safe.get("/")).status_code == 303


async def test_behind_a_proxy_that_ends_tls_cookies_are_for_https(dependencies: ConsoleDependencies) -> None:
    behind = replace(dependencies, public_url="https://ops.example")
    async with browser(an_app(behind)) as client:
        cookie = (await sign_in(dependencies, client)).headers["set-cookie"]
        assert re.fullmatch(r"__Host-ordersaga=\S+; HttpOnly; Path=/; SameSite=lax; Secure", cookie)
        name, _, value = cookie.partition(";")[0].partition("=")
        assert (await client.get("/", headers={"Cookie": f"{name}={value}"})).status_code == 200


# --- Those who are not signed in. ---


async def test_a_page_leads_to_sign_in_and_back_and_nowhere_else(visitor: httpx.AsyncClient) -> None:
    page = await visitor.get("/orders?status=FAILED&open=1")
    assert (page.status_code, page.headers["location"]) == (303, "/sign-in?next=/orders%3Fstatus%3DFAILED%26open%3D1")
    part = await visitor.get("/overview", headers={"HX-Request": "true", "HX-Current-URL": f"{BASE}/orders/o1?x=1"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in?next=/orders/o1%3Fx%3D1")
    assert (await visitor.post("/audit")).headers["location"] == "/sign-in"
    program = await visitor.get("/orders", headers={"Accept": "*/*"})
    assert (program.status_code, program.headers["www-authenticate"]) == (401, "Bearer")
    wrong = await visitor.get("/orders", headers={"Authorization": "Bearer osk_wrong"})
    assert wrong.status_code == 401
    for _ in range(30):
        assert (await visitor.get("/orders")).status_code == 303


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example/",
        "/\n//evil.example",
        "javascript:alert(1)",
        "",
        "orders",
        "/é",
        "/" + "x" * 2000,
        "/sign-in?next=/sign-in",
        "/sign-out",
    ],
)
def test_no_address_leads_to_another_site(address: str) -> None:
    assert local_target(address) == "/"


async def test_only_the_pages_for_signing_in_are_open(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient
) -> None:
    for path in OPEN_PATHS:
        assert (await visitor.get(path)).status_code not in (303, 401), path
    for route in guarded_routes(an_app(dependencies)):
        answer = await visitor.request(route.method, route.path, headers={"Accept": "*/*"})
        assert answer.status_code == 401, route


async def test_keys_of_customers_and_shops_do_not_open_pages(visitor: httpx.AsyncClient) -> None:
    """Pages show the records of every owner."""
    for role in Role:
        answer = await visitor.get("/orders", headers=bearer(KEYS[role]))
        assert answer.status_code == (200 if role in STAFF else 403), role


async def test_a_name_that_was_pointed_here_gets_neither_page_nor_session(dependencies: ConsoleDependencies) -> None:
    async with browser(an_app(dependencies), "http://evil.example") as rebound:
        for path in ("/sign-in", "/sign-in/link?token=x"):
            assert (await rebound.get(path)).status_code == 421
        token = await new_link(dependencies)
        assert (await rebound.post("/sign-in/link", data={"token": token})).status_code == 421
        assert await SignInLinks(dependencies.operations, dependencies.clock).look(token) == ANNA


async def test_another_site_can_neither_act_nor_sign_a_browser_in(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient
) -> None:
    token = await new_link(dependencies)
    for site in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert (await visitor.post("/sign-in/link", data={"token": token}, headers=site)).status_code == 403
    await sign_in(dependencies, visitor)
    for path in ("/audit", "/sign-out"):
        assert (await visitor.post(path, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await visitor.get("/")).status_code == 200


# --- A proxy that authenticates people. ---

PROXY = IdentityProxy("X-User", "X-Roles", (ip_network("127.0.0.1"),))


async def test_only_a_trusted_proxy_names_people(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, proxy=PROXY) as dependencies:
        app = an_app(dependencies)
        named = {b"X-User": "Zoë".encode(), b"X-Roles": b"viewer, other"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url=BASE, headers=OURS | PAGE
        ) as proxy:
            assert "<strong>Zoë</strong>, viewer" in (await proxy.get("/", headers=named)).text
            assert (await proxy.post("/audit", headers=named)).status_code == 403
            assert (await proxy.get("/")).status_code == 303
            assert (await proxy.get("/", headers={"X-User": "anna", "X-Roles": "client"})).status_code == 403
            twice = [("X-User", "anna"), ("X-User", "root"), ("X-Roles", "admin")]
            assert (await proxy.get("/", headers=twice)).status_code == 401
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=("192.0.2.1", 1)), base_url=BASE, headers=OURS | PAGE
        ) as stranger:
            assert (await stranger.get("/", headers=named)).status_code == 303


# --- What each role is shown and may do. ---


class _Targets(HTMLParser):
    """The addresses of all links and forms of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self._page = page
        self._method = "GET"
        self.found: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._method = given.get("method", "get").upper()
        for name in ("action", "formaction"):
            if name in given:
                self._add(self._method, given[name])
        for name in ("href", "hx-get", "src"):
            if name in given:
                self._add("GET", given[name])

    def _add(self, method: str, address: str) -> None:
        parts = urlsplit(urljoin(self._page, address))
        if not parts.netloc and not address.startswith("#"):
            self.found.add((method, parts.path + (f"?{parts.query}" if parts.query else "")))


@pytest.mark.parametrize("role", sorted(STAFF))
async def test_a_page_offers_a_role_only_what_it_may_do(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient, clock: Clock, role: Role
) -> None:
    await fill(dependencies)
    clock.now += timedelta(minutes=1)  # letters that fail from now on are not selected
    app = an_app(dependencies)
    await sign_in(dependencies, visitor, Person("p", "p", frozenset({role})))
    routes = {(route.method, route.path): route for route in guarded_routes(app)}
    seen: set[str] = set()
    offered: set[tuple[str, str]] = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = await visitor.get(path)
        assert answer.status_code in (200, 303, 409, 503), (role, path, answer.text)
        if "text/html" not in answer.headers.get("content-type", ""):
            continue
        targets = _Targets(path)
        targets.feed(answer.text)
        for method, address in targets.found:
            template = template_of(app, method, urlsplit(address).path)
            if template in OPEN_PATHS or template == "/static/{name}":
                continue
            route = routes[method, template]
            assert route.reach(role) is not None, (
                f"{path} offers {role} {method} {address}, which needs {route.permission}"
            )
            offered.add((method, template))
            # Of weeks there is no end.
            is_new = address not in seen and address not in waiting and "week=" not in address
            if method == "GET" and is_new and len(seen) < 200:
                waiting.append(address)
    decides = {("POST", "/orders/{order_id}/do/cancel"), ("POST", "/dead-letters/many/replay")}
    assert (decides <= offered) == (role in (Role.OPERATOR, Role.ADMIN)), offered
    assert ("POST", "/dead-letters/letters/{letter_id}/edit/preview") in offered or role is not Role.ADMIN
    assert ("POST", "/orders/{order_id}/do/refund") in offered or role not in (Role.OPERATOR, Role.ADMIN)


def template_of(app: FastAPI, method: str, path: str) -> str:
    """The route that answers a request; not that of the page for what does not exist."""
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
    for route in routes_of(app):
        if route.path != "/{address:path}" and route.matches(scope)[0] is Match.FULL:
            return route.path
    raise AssertionError(f"no route answers {method} {path}")


async def fill(dependencies: ConsoleDependencies) -> None:
    """Orders, letters and a replay, so that every kind of page and button is there."""
    at = dependencies.clock()
    for order_id, status in (("o1", "PENDING"), ("o2", "FAILED"), ("o3", "CONFIRMED")):
        await dependencies.orders.insert_one(
            {
                "_id": order_id,
                "userId": "u1",
                "items": [{"productId": "p1", "quantity": 1, "price": 1000}],
                "totalAmount": 1000,
                "currency": "USD",
                "status": status,
                "stockStatus": "PENDING",
                "paymentStatus": "PENDING",
                "settled": False,
                "createdAt": at,
                "updatedAt": at,
                "history": [{"at": at, "event": "order.created", "status": "PENDING"}],
            }
        )
    await record_letters(dependencies, a_letter("o1"), a_letter("o2", "other"))
    letters = DeadLetterService(dependencies.operations)
    await letters.start_replay(Filters(order_id="o2"), by="ann", why="a test")


# --- For whom the console acts. ---


async def test_services_learn_for_whom_the_console_acts_and_grant_no_more(
    mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    """The stub recognizes callers as services do: by the key of the console and the person it acts for."""
    callers: list[Any] = []
    service = FastAPI()

    @service.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def anything(path: str, request: Request) -> dict[str, Any]:
        if path not in ("readyz", "consumer"):  # the banner of all pages, for nobody in particular
            callers.append(await key_authenticator().authenticate(request.headers))
        return {}

    person = Person("Zoë; admin, 100%", "Zoë", frozenset({Role.OPERATOR, Role.VIEWER}))
    async with serve(service) as url:
        urls = dict.fromkeys(NO_SERVICES, url)
        async with (
            console_dependencies(mongodb_url, amqp_url, database_prefix, urls) as dependencies,
            browser(an_app(dependencies)) as client,
        ):
            await sign_in(dependencies, client, person)
            done = await client.post("/locks", data={"package": "p", "why": "because"})
            assert done.status_code == 303
            (caller,) = callers
            assert (caller.id, caller.roles, caller.grants) == (person.subject, person.roles, person.principal().grants)
            assert caller.via == f"key:{RING.records[KEYS[Role.ADMIN][4:12]].id}"
            entries = (await list_actions(dependencies.operations, subject="p")).items
            assert {entry["by"] for entry in entries} == {"Zoë (Zoë; admin, 100%)"}
            callers.clear()
            await client.get("/inventory")
            assert {caller.id for caller in callers} == {person.subject}
