"""The page at /docs in a real browser: it shows the API without the internet and within its own policy."""

from playwright.async_api import expect

from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import add_routes, create_app, json_response, new_router
from tests.support.access import ADMIN_KEY, key_authenticator
from tests.support.browser import run_browser
from tests.support.consoles import serve

PATIENCE = 60_000
"""Milliseconds: how long a page on a loaded machine may take."""


async def test_the_page_shows_the_api_and_calls_it_with_a_key_and_loads_nothing_from_elsewhere() -> None:
    async def ready() -> dict[str, str]:
        return {}

    router = new_router("things")

    @router.get("/things")
    @requires(Permission.CATALOGUE_READ)
    async def list_things() -> object:
        """List the things."""
        return json_response({"items": ["one thing"]})

    app = create_app("shop", "Sells things", ready, authenticator=key_authenticator())
    add_routes(app.router, router)
    errors: list[str] = []
    asked: list[str] = []
    async with serve(app) as url, run_browser() as browser:
        page = await browser.new_page(base_url=url)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        await page.goto("/docs")
        await page.get_by_role("button", name="Authorize").first.click()
        dialog = page.locator(".dialog-ux")
        await dialog.get_by_role("textbox").fill(ADMIN_KEY)
        await dialog.get_by_role("button", name="Apply credentials").click()
        await dialog.get_by_role("button", name="Close").last.click()
        operation = page.locator("#operations-things-listThings")
        await expect(operation).to_contain_text("/things", timeout=PATIENCE)
        await operation.click()
        await page.get_by_role("button", name="Try it out").click()
        await page.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table")).to_contain_text("one thing", timeout=PATIENCE)
        await page.close()
    assert errors == []
    assert [address for address in asked if not address.startswith((f"{url}/", "data:"))] == []
