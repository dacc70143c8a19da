"""Sign-in by OpenID Connect: in a real browser with a mock issuer, and against everything that can be wrong with it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from operations.console import ConsoleDependencies
from operations.sign_in.links import SignInLinks
from operations.sign_in.oidc import OidcSignIn
from operations.sign_in.person import Person
from operations.stack.ports import PortClaims
from shared.access.issuer import Issuer
from shared.access.permissions import Role
from tests.support.browser import run_browser
from tests.support.consoles import BASE, OURS, an_app, console_dependencies, served
from tests.support.eventually import eventually
from tests.support.issuers import MockIssuer, run_issuer

PATIENCE = 60_000
SCREENSHOTS_VARIABLE = "ORDERSAGA_SCREENSHOTS"
CLIENT = "ordersaga-console"
FROM_ISSUER = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix) as found:
        yield found


# --- In a browser. ---


@asynccontextmanager
async def mock_provider(*users: dict[str, Any]) -> AsyncIterator[str]:
    """The URL of `oidc-provider-mock`, a process that knows these people."""
    claims = PortClaims()
    port = claims.claim_free()
    words = [word for user in users for word in ("--user-claims", json.dumps(user))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *words, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(trust_env=False) as client:

            async def answers() -> bool:
                try:
                    return (await client.get(f"{url}/.well-known/openid-configuration")).is_success
                except httpx.HTTPError:
                    return False

            await eventually(answers, 60, "the mock issuer to answer")
        yield url
    finally:
        process.terminate()
        await process.wait()
        claims.release()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as found:
        yield found


@asynccontextmanager
async def opened(browser: Browser, url: str) -> AsyncIterator[Page]:
    """A page in a browser of its own; it must not violate the policy of the console."""
    errors: list[str] = []
    context = await browser.new_context(base_url=url, viewport={"width": 1000, "height": 700})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
    yield page
    await context.close()
    expect.set_options(timeout=5000)
    assert errors == []


async def take_screenshot(page: Page, name: str) -> None:
    if directory := os.environ.get(SCREENSHOTS_VARIABLE):
        await page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


async def test_people_of_an_issuer_sign_in_with_their_roles(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    vera = {"sub": "u-17", "name": "Vera Ω", "roles": ["viewer", "chess-club"]}
    carl = {"sub": "u-18", "name": "Carl", "roles": ["customer"]}
    async with mock_provider(vera, carl) as issuer:
        console = replace(dependencies, oidc=OidcSignIn(Issuer(issuer), CLIENT, "a secret"))
        async with served(console) as url:
            async with opened(browser, url) as page:
                await page.goto("/orders?status=FAILED")
                await take_screenshot(page, "sign-in")
                await page.get_by_role("link", name="Sign in with").click()
                await page.get_by_role("button", name="u-17").click()
                await expect(page).to_have_url(f"{url}/orders?status=FAILED")
                await expect(page.get_by_text("Signed in as Vera Ω, viewer")).to_be_visible()
                await page.goto("/")
                await expect(page.get_by_role("link", name="Actions")).to_be_visible()
                # The session ends on the server while the overview refreshes itself.
                await console.operations["sessions"].delete_many({})
                await expect(page).to_have_url(f"{url}/sign-in")
            async with opened(browser, url) as page:
                await page.goto("/sign-in")
                await page.get_by_role("link", name="Sign in with").click()
                await page.get_by_role("button", name="u-18").click()
                await expect(page.get_by_text("Carl (u-18) has customer")).to_be_visible()
                await take_screenshot(page, "no-staff")
                assert await page.context.cookies() == [] or "ordersaga" not in {
                    cookie["name"] for cookie in await page.context.cookies()
                }
    by = [action["by"] for action in await dependencies.operations["actions"].find().to_list(None)]
    assert by == ["Vera Ω (u-17)"]


async def test_a_link_signs_a_browser_in_and_out(dependencies: ConsoleDependencies, browser: Browser) -> None:
    person = Person("anna", "anna", frozenset({Role.VIEWER}))
    at = dependencies.clock()
    order = {"_id": "o1", "status": "PENDING", "settled": False, "totalAmount": 1000, "createdAt": at, "items": []}
    await dependencies.orders.insert_one(order | {"history": []})
    async with served(dependencies) as url, opened(browser, url) as page:
        secret, _ = await SignInLinks(dependencies.operations).create(person)
        await page.goto(f"/sign-in/link?token={secret}")
        await take_screenshot(page, "sign-in-link")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_text("Signed in as anna, viewer")).to_be_visible()
        await page.goto("/orders/o1")
        await expect(page.get_by_role("link", name="Cancel…")).to_have_count(0)
        await take_screenshot(page, "viewers-order")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page).to_have_url(f"{url}/sign-in")
        await page.goto("/orders")
        await expect(page).to_have_url(f"{url}/sign-in?next=/orders")


async def test_a_form_on_another_site_reaches_nothing(dependencies: ConsoleDependencies, browser: Browser) -> None:
    """`localhost` is another site than 127.0.0.1, and shares its cookies with nobody."""
    person = Person("anna", "anna", frozenset({Role.ADMIN}))
    async with served(dependencies) as url, opened(browser, url) as page:
        secret, _ = await SignInLinks(dependencies.operations).create(person)
        await page.goto(f"/sign-in/link?token={secret}")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_text("Signed in as anna")).to_be_visible()
        attack = f'<form method="post" action="{url}/sign-out"><button>Win a prize</button></form>'

        async def answer(route: Any) -> None:
            await route.fulfill(body=attack, content_type="text/html")

        await page.route("http://evil.example/**", answer)
        await page.goto("http://evil.example/")
        await page.get_by_role("button", name="Win a prize").click()
        await expect(page.get_by_text("another site")).to_be_visible()
        await page.goto("/")
        await expect(page.get_by_text("Signed in as anna")).to_be_visible()


# --- What can be wrong. ---


@pytest.fixture
async def issuer() -> AsyncIterator[MockIssuer]:
    async with run_issuer() as running:
        yield running


@pytest.fixture
async def visitor(dependencies: ConsoleDependencies, issuer: MockIssuer) -> AsyncIterator[httpx.AsyncClient]:
    issuer.id_token = {"roles": ["operator"], "sub": "u-1"}
    console = replace(dependencies, oidc=OidcSignIn(Issuer(issuer.url), CLIENT))
    transport = httpx.ASGITransport(an_app(console))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=OURS | {"Accept": "text/html"}) as client:
        yield client


async def callback_after(visitor: httpx.AsyncClient, target: str = "/") -> str:
    """Begin to sign in, and return the address to which the issuer sends the browser back."""
    begun = await visitor.get("/sign-in/oidc", params={"next": target})
    assert begun.status_code == 303
    async with httpx.AsyncClient(trust_env=False) as elsewhere:
        back = await elsewhere.get(begun.headers["location"])
    return str(back.headers["location"])


async def test_the_request_has_what_the_flow_needs(visitor: httpx.AsyncClient, issuer: MockIssuer) -> None:
    begun = await visitor.get("/sign-in/oidc")
    address = urlsplit(begun.headers["location"])
    asked = dict(parse_qsl(address.query))
    assert f"{address.scheme}://{address.netloc}" == issuer.url
    assert asked["redirect_uri"] == f"{BASE}/sign-in/callback"
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert "openid" in asked["scope"]
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 43
    assert "HttpOnly" in begun.headers["set-cookie"]


async def test_a_sign_in_leads_to_the_page_that_was_asked_for(visitor: httpx.AsyncClient) -> None:
    answer = await visitor.get(await callback_after(visitor, "/orders?open=1"), headers=FROM_ISSUER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/orders?open=1")
    assert "<strong>u-1</strong>, operator" in (await visitor.get("/")).text
    elsewhere = await visitor.get(await callback_after(visitor, "//evil.example"), headers=FROM_ISSUER)
    assert elsewhere.headers["location"] == "/"


async def refused(visitor: httpx.AsyncClient, address: str) -> str:
    answer = await visitor.get(address, headers=FROM_ISSUER)
    assert answer.status_code == 403, answer.text
    assert "ordersaga" not in visitor.cookies
    return answer.text


async def test_an_answer_for_another_browser_is_refused(visitor: httpx.AsyncClient) -> None:
    address = await callback_after(visitor)
    visitor.cookies.clear()
    assert "has not begun to sign in" in await refused(visitor, address)
    await visitor.get("/sign-in/oidc")
    assert "belongs to another sign-in" in await refused(visitor, address)
    for cookie in ("x", "e30=", "W10="):
        visitor.cookies.clear()
        visitor.cookies.set("ordersaga-sign-in", cookie)
        assert "has not begun to sign in" in await refused(visitor, address)


async def test_a_code_works_once(visitor: httpx.AsyncClient) -> None:
    address = await callback_after(visitor)
    cookie = visitor.cookies["ordersaga-sign-in"]
    assert (await visitor.get(address, headers=FROM_ISSUER)).status_code == 303
    visitor.cookies.clear()
    visitor.cookies.set("ordersaga-sign-in", cookie)
    assert "did not accept" in await refused(visitor, address)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"nonce": "another"}, "belongs to another sign-in"),
        ({"nonce": None}, "belongs to another sign-in"),
        ({"aud": "another-client"}, "another audience"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "for another client"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"exp": 1}, "expired"),
        ({"sub": ""}, "not a name"),
        ({"roles": []}, "has no role"),
        ({"roles": ["client"]}, "has client"),
    ],
)
async def test_a_wrong_id_token_begins_no_session(
    visitor: httpx.AsyncClient, issuer: MockIssuer, changed: dict[str, Any], expected: str
) -> None:
    issuer.id_token |= changed
    assert expected in await refused(visitor, await callback_after(visitor))


async def test_a_token_without_a_key_id_counts_only_if_the_issuer_has_one_key(
    visitor: httpx.AsyncClient, issuer: MockIssuer
) -> None:
    issuer.id_token["key_id"] = None
    assert "does not have the key" in await refused(visitor, await callback_after(visitor))


async def test_a_refusal_and_an_outage_of_the_issuer_are_shown(
    dependencies: ConsoleDependencies, visitor: httpx.AsyncClient, issuer: MockIssuer
) -> None:
    assert "refused the sign-in: access_denied" in await refused(visitor, "/sign-in/callback?error=access_denied")
    issuer.status = 500
    away = await visitor.get("/sign-in/oidc")
    assert away.status_code == 503
    assert issuer.url in away.text
