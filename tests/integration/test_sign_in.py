"""Signing in to the console: by a link, once; sessions that end; pages that show what the person may do."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from playwright.async_api import Page, expect
from starlette.datastructures import Headers

from operations.actions import list_actions
from operations.console import ConsoleDependencies
from operations.console.sign_in import local_path
from operations.sessions import IDLE, LIFETIME, LINK_LIFETIME, Person, Sessions
from shared.access.permissions import ROLES, STAFF, Permission, Role
from shared.clock import utc_now
from tests.support.access import ADMIN, RING, bearer, key_authenticator
from tests.support.browser import run_browser
from tests.support.consoles import BASE, OURS, a_letter, an_app, console_dependencies, record_letters, serve, served

HTML = {"Accept": "text/html"}


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, time: timedelta) -> None:
        self.now += time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, clock: Clock
) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, clock=clock) as opened:
        yield opened


@pytest.fixture
async def visitor(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has not signed in."""
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=OURS | HTML) as client:
        yield client


async def link(client: httpx.AsyncClient, role: str = "operator", person: str = "Änne; Ω") -> str:
    """The token of a new link."""
    body = {"person": person.replace(";", ","), "role": role}
    answer = await client.post("/sign-in/links", json=body, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["path"].partition("link=")[2])


async def sign_in(client: httpx.AsyncClient, role: str = "operator", **fields: Any) -> httpx.Response:
    return await client.post("/sign-in", data={"link": await link(client, role), **fields})


async def test_who_has_not_signed_in_is_led_there_and_back(visitor: httpx.AsyncClient) -> None:
    answer = await visitor.get("/orders?status=FAILED")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Forders%3Fstatus%3DFAILED")
    page = await visitor.get(answer.headers["location"])
    assert "ordersaga console" in page.text
    assert (await visitor.get("/static/console.css")).status_code == 200

    signed_in = await sign_in(visitor, next="/orders?status=FAILED")
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/orders?status=FAILED")
    assert "Signed in as <strong>Änne, Ω</strong>" in (await visitor.get("/orders")).text


async def test_a_program_without_a_key_gets_a_problem_and_no_page(visitor: httpx.AsyncClient) -> None:
    answer = await visitor.get("/orders", headers={"Accept": "application/json"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_link_works_once(visitor: httpx.AsyncClient) -> None:
    token = await link(visitor)
    assert "<button>Sign in</button>" in (await visitor.get(f"/sign-in?link={token}")).text  # a look uses nothing up
    assert (await visitor.post("/sign-in", data={"link": token})).status_code == 303
    again = await visitor.post("/sign-in", data={"link": token})
    assert (again.status_code, "has been used, or is older than a minute" in again.text) == (403, True)


async def test_a_link_is_too_old_after_a_minute(visitor: httpx.AsyncClient, clock: Clock) -> None:
    token = await link(visitor)
    clock.pass_by(LINK_LIFETIME)
    assert (await visitor.post("/sign-in", data={"link": token})).status_code == 403


@pytest.mark.parametrize("role", ["customer", "client", "king"])
async def test_only_staff_can_be_given_a_link(visitor: httpx.AsyncClient, role: str) -> None:
    answer = await visitor.post("/sign-in/links", json={"person": "Eve", "role": role}, headers=ADMIN)
    assert answer.status_code == 422
    assert "role" in answer.json()["errors"][0]["field"]


async def test_only_who_manages_keys_creates_links(visitor: httpx.AsyncClient) -> None:
    key = bearer(RING.add(Role.OPERATOR))
    answer = await visitor.post("/sign-in/links", json={"person": "Eve", "role": "admin"}, headers=key)
    assert answer.status_code == 403
    await sign_in(visitor, "operator")
    assert (await visitor.post("/sign-in/links", json={"person": "Eve", "role": "admin"})).status_code == 403


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(visitor: httpx.AsyncClient) -> None:
    cookie = (await sign_in(visitor)).headers["set-cookie"]
    assert cookie.startswith("ordersaga-session=")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    secure = (await visitor.post("https://127.0.0.1/sign-in", data={"link": await link(visitor)})).headers["set-cookie"]
    assert secure.startswith("__Host-ordersaga-session=")
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Secure"} <= set(secure.split("; "))
    assert "Domain" not in secure


async def test_what_is_stored_signs_nobody_in(visitor: httpx.AsyncClient, dependencies: ConsoleDependencies) -> None:
    await sign_in(visitor)
    token = visitor.cookies["ordersaga-session"]
    (stored,) = await dependencies.operations["sessions"].find().to_list()
    assert token not in str(stored)
    assert await dependencies.operations["sign_in_links"].count_documents({}) == 0
    visitor.cookies.set("ordersaga-session", stored["_id"])
    assert (await visitor.get("/orders")).status_code == 303


async def test_a_session_ends_when_it_is_not_used_and_in_any_case_after_hours(
    visitor: httpx.AsyncClient, clock: Clock
) -> None:
    await sign_in(visitor)
    started = clock.now
    while clock.now - started < LIFETIME - IDLE:
        clock.pass_by(IDLE - timedelta(minutes=2))
        assert (await visitor.get("/orders")).status_code == 200
    clock.pass_by(IDLE)
    assert (await visitor.get("/orders")).status_code == 303

    await sign_in(visitor)
    clock.pass_by(IDLE)
    assert (await visitor.get("/orders")).status_code == 303


async def test_signing_out_ends_the_session_on_the_server(visitor: httpx.AsyncClient) -> None:
    await sign_in(visitor)
    token = visitor.cookies["ordersaga-session"]
    assert (await visitor.post("/sign-out")).headers["location"] == "/sign-in"
    visitor.cookies.set("ordersaga-session", token)
    assert (await visitor.get("/orders")).status_code == 303


async def test_a_new_session_has_a_new_id_whatever_the_browser_brings(visitor: httpx.AsyncClient) -> None:
    visitor.cookies.set("ordersaga-session", "chosen-by-an-attacker")
    await sign_in(visitor)
    assert "chosen-by-an-attacker" not in [
        cookie.value for cookie in visitor.cookies.jar if cookie.domain == "127.0.0.1"
    ]


async def test_another_process_of_the_console_knows_the_session(
    visitor: httpx.AsyncClient, dependencies: ConsoleDependencies
) -> None:
    await sign_in(visitor)
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=HTML, cookies=visitor.cookies) as other:
        assert (await other.get("/orders")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}]
)
async def test_another_site_can_do_nothing_with_the_session(
    visitor: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await sign_in(visitor)
    del visitor.headers["Sec-Fetch-Site"]
    assert (await visitor.post("/sign-out", headers=headers)).status_code == 403
    assert (await visitor.get("/orders", headers=OURS)).status_code == 200
    assert (await visitor.get("/orders", headers={"Host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "javascript:alert(1)",
        "orders",
        "/\t/evil.example",
        "",
        "http:///evil.example",
        "/%0d%0aevil: 1\r\n",
    ],
)
def test_signing_in_leads_to_no_other_site(address: str) -> None:
    assert local_path(address) == "/"


def test_signing_in_leads_back_to_any_page_of_the_console() -> None:
    assert local_path("/orders?status=FAILED&text=a%20b") == "/orders?status=FAILED&text=a%20b"


async def test_two_uses_of_one_link_at_once_are_one(dependencies: ConsoleDependencies) -> None:

    sessions = Sessions(dependencies.operations, utc_now)
    token = await sessions.create_link(Person("Anna", frozenset({Role.VIEWER})))
    used = await asyncio.gather(*(sessions.use_link(token) for _ in range(10)))
    assert [person for person in used if person is not None] == [Person("Anna", frozenset({Role.VIEWER}))]


# --- Who acts. ---


async def test_the_person_is_in_the_log_whatever_the_form_says(
    visitor: httpx.AsyncClient, dependencies: ConsoleDependencies
) -> None:
    await record_letters(dependencies, a_letter("o1"))
    (letter,) = await dependencies.operations["dead_letters"].find().to_list()
    await sign_in(visitor, "operator")
    form = {"why": "not needed", "by": "Mallory"}
    answer = await visitor.post(f"/dead-letters/letters/{letter['_id']}/discard", data=form)
    assert answer.status_code == 303, answer.text
    assert [entry["by"] for entry in (await list_actions(dependencies.operations)).items] == ["Änne, Ω"]


async def test_services_are_told_for_whom_the_console_acts(
    mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    heard: list[tuple[str | None, str | None]] = []
    service = FastAPI()

    @service.get("/inventory")
    async def inventory(request: Request) -> dict[str, Any]:
        heard.append((request.headers.get("authorization"), request.headers.get("ordersaga-acts-for")))
        return {"items": [], "nextCursor": None}

    async with (
        serve(service) as url,
        console_dependencies(mongodb_url, amqp_url, database_prefix, {"inventory": url}) as dependencies,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(an_app(dependencies)), base_url=BASE, headers=OURS | HTML
        ) as visitor,
    ):
        await sign_in(visitor, "viewer")
        assert (await visitor.get("/inventory")).status_code == 200
        assert (await visitor.get("/inventory", headers=ADMIN)).status_code == 200
    own = ADMIN["Authorization"]
    assert heard == [(own, "%C3%84nne%2C%20%CE%A9;viewer"), (own, None)]
    caller = await key_authenticator().authenticate(
        Headers({"authorization": own, "ordersaga-acts-for": heard[0][1] or ""})
    )
    assert (caller.id, caller.roles) == ("Änne, Ω", frozenset({Role.VIEWER}))


async def test_a_part_of_a_page_leads_the_whole_page_to_the_sign_in(visitor: httpx.AsyncClient) -> None:
    answer = await visitor.get("/overview", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/sign-in")


# --- What a person may do. ---

LINKS = re.compile(r'(?:href|action|hx-get)="(/[^"]*)"')
FORMS = re.compile(r'<form[^>]*method="(\w+)"[^>]*action="([^"]*)"|<form[^>]*action="([^"]*)"[^>]*method="(\w+)"')


@pytest.mark.parametrize("role", sorted(STAFF))
async def test_no_page_offers_what_would_be_refused(
    visitor: httpx.AsyncClient, dependencies: ConsoleDependencies, role: Role
) -> None:
    await record_letters(dependencies, a_letter("o1"))
    await dependencies.orders.insert_one(AN_ORDER)
    await sign_in(visitor, role)
    seen: set[str] = set()
    waiting = ["/orders/o1"] if Permission.ORDERS_READ in ROLES[role] else ["/inventory"]
    while waiting:
        address = waiting.pop().replace("&amp;", "&")
        if address in seen or len(seen) > 60 or address.startswith("/static/"):
            continue
        seen.add(address)
        answer = await visitor.get(address)
        assert answer.status_code != 403, f"{role} is offered {address}"
        if "text/html" not in answer.headers.get("content-type", ""):
            continue
        waiting += LINKS.findall(answer.text.replace("sign-out", "overview"))
        for one, first, second, other in FORMS.findall(answer.text):
            method, target = (one or other), (first or second)
            if method == "post" and target != "/sign-out":
                # Without its fields the form is invalid, which is found after the permission.
                assert (await visitor.post(target)).status_code != 403, f"{role} is offered the form {target}"
    assert len(seen) > 2


AN_ORDER: dict[str, Any] = {
    "_id": "o1",
    "userId": "u1",
    "items": [],
    "totalAmount": 0,
    "currency": "USD",
    "status": "FAILED",
    "stockStatus": "RESERVED",
    "paymentStatus": "PROCESSED",
    "settled": False,
    "createdAt": utc_now(),
    "updatedAt": utc_now(),
    "deadline": utc_now(),
    "history": [],
    "version": 1,
    "payment": {},
    "delivery": {},
}


# --- In a browser. ---


@pytest.fixture
async def page(dependencies: ConsoleDependencies) -> AsyncIterator[Page]:
    async with served(dependencies) as url, run_browser() as browser:
        yield await browser.new_page(base_url=url)


async def test_a_person_signs_in_by_the_link_and_out_again(page: Page, dependencies: ConsoleDependencies) -> None:
    token = await Sessions(dependencies.operations, dependencies.clock).create_link(
        Person("Anna", frozenset({Role.VIEWER}))
    )
    await page.goto("/orders")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.goto(f"/sign-in?link={token}")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_text("Signed in as Anna")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
