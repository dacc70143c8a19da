"""The console in a real browser: it refreshes itself, fits a phone, and works with only a keyboard."""

import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, Page, Route, ViewportSize, expect
from yarl import URL

from operations.actions import list_actions, record_action
from operations.console import ConsoleDependencies
from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.samples.records import SampleRecords, SampleState
from operations.samples.sample import Sample, whole_minute
from shared.clock import utc_now
from tests.support.access import ADMIN
from tests.support.browser import Hands, run_browser
from tests.support.consoles import a_letter, console_dependencies, record_letters, served
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

PATIENCE = 60_000
"""Milliseconds that a page may take on a loaded machine."""

PHONE = 390
LONG = "a-very-long-identifier-without-any-place-to-break-" * 4


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix) as found:
        yield found


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as found:
        yield found


async def open_page(browser: Browser, url: str, errors: list[str], width: int = 1280, zone: str = "UTC") -> Page:
    size: ViewportSize = {"width": width, "height": 800}
    page = await browser.new_page(base_url=url, extra_http_headers=ADMIN, viewport=size, timezone_id=zone)
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page


async def fill(dependencies: ConsoleDependencies) -> list[str]:
    """Store records with long names; return the URLs of all kinds of pages."""
    at = utc_now() - timedelta(minutes=1)
    history = [
        {"at": at, "event": "order.created", "status": "PENDING"},
        {"at": at, "event": "order.cancel_requested", "status": "CANCELLED", "message": LONG},
    ]
    await dependencies.orders.insert_one(
        {
            "_id": "o1",
            "userId": LONG,
            "items": [{"productId": LONG, "quantity": 1, "price": 1000}],
            "totalAmount": 1000,
            "currency": "USD",
            "status": "CANCELLED",
            "stockStatus": "PENDING",
            "paymentStatus": "PENDING",
            "failureReason": LONG,
            "settled": False,
            "createdAt": at,
            "updatedAt": at,
            "history": history,
        }
    )
    await record_letters(dependencies, a_letter("o1", LONG), a_letter("o2", "other"))
    letters = DeadLetterService(dependencies.operations)
    letter = (await letters.page(Filters(order_id="o1"))).items[0]
    await letters.add_note(letter["fingerprint"], LONG, by=LONG)
    replay = await letters.start_replay(Filters(order_id="o2"), by=LONG, why=LONG)
    return [
        "/",
        "/orders",
        "/orders/o1",
        "/inventory",
        "/packages",
        f"/locks?package={LONG}",
        "/audit",
        "/incidents",
        "/notifications",
        "/actions",
        "/consumers",
        "/consumers/payment/pause",
        "/sign-in",
        "/dead-letters",
        "/dead-letters/list",
        "/dead-letters/replays",
        f"/dead-letters/replays/{replay}",
        f"/dead-letters/groups/{letter['fingerprint']}",
        f"/dead-letters/groups/{letter['fingerprint']}/preview",
        f"/dead-letters/letters/{letter['_id']}",
        f"/dead-letters/letters/{letter['_id']}/edit",
        "/bulk-actions",
        f"/search?q={LONG[:200]}",
        *(f"/dead-letters/many/{act}?matching=1" for act in ("replay", "edit", "discard")),
    ]


async def test_every_page_fits_a_phone_and_violates_no_browser_policy(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    errors: list[str] = []
    async with served(dependencies) as url:
        page = await open_page(browser, url, errors, PHONE)
        for path in await fill(dependencies):
            await page.goto(path)
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE, (path, width)
            named = await page.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
                ".filter(field => !field.labels.length && !field.ariaLabel).length"
            )
            assert named == 0, f"{path} has a field without a label"
        await page.close()
    assert errors == []


async def test_the_overview_refreshes_itself_and_keeps_the_focus(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    errors: list[str] = []
    async with served(dependencies) as url:
        page = await open_page(browser, url, errors)
        await page.goto("/")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "content"
        await expect(page.get_by_text("No open dead letters")).to_be_visible(timeout=PATIENCE)
        heading = page.get_by_role("link", name="Packages running low")
        await heading.focus()
        await record_letters(dependencies, a_letter("o1", "no price"))
        group = page.locator(".group-link")
        # After a slow count of the dead letters, the next one comes after twenty times that time.
        await expect(group).to_have_count(1, timeout=5 * PATIENCE)
        await expect(heading).to_be_focused(timeout=PATIENCE)
        # From the group to its cause with the keyboard.
        await group.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Traceback")).to_contain_text("Poison: no price", timeout=PATIENCE)
        await page.close()
    assert errors == []


async def test_at_double_size_tables_scroll_and_no_column_is_hidden(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    async with served(dependencies) as url:
        page = await open_page(browser, url, [], 640)  # 1280 at 200 %
        for path in await fill(dependencies):
            await page.goto(path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 640, path
            hidden = await page.evaluate(
                "[...document.querySelectorAll('th, td')].filter(cell => !cell.getClientRects().length).length"
            )
            assert hidden == 0, path
        await page.set_viewport_size({"width": PHONE, "height": 800})
        await page.goto("/dead-letters/list")
        scrolls = "element => element.scrollWidth > element.clientWidth"
        assert await page.locator(".scroll").first.evaluate(scrolls)
        await page.close()


async def test_at_double_size_a_group_shows_its_impact_and_pages_and_the_search_lead_on(
    dependencies: ConsoleDependencies, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.console.letter_groups.GROUPS", 1)
    await fill(dependencies)
    async with served(dependencies) as url:
        page = await open_page(browser, url, [], 640)  # 1280 at 200 %
        await page.goto("/dead-letters")
        await expect(page.get_by_text("Groups 1 to 1 of 2, sorted by harm")).to_be_visible(timeout=PATIENCE)
        impact = page.locator(".impact")
        await expect(impact).to_contain_text("1 order of 1 customer: 1 CANCELLED", timeout=PATIENCE)
        box = await impact.get_by_text("10.00 USD at stake").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 640
        await page.get_by_role("link", name="Next page").click()
        await expect(page.get_by_text("Groups 2 to 2 of 2")).to_be_visible(timeout=PATIENCE)
        await expect(page.locator(".impact")).to_contain_text("leads to no known order", timeout=PATIENCE)
        await page.get_by_role("link", name="Previous page").click()
        await page.get_by_label("Find any id").fill("o1")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/orders/o1", timeout=PATIENCE)
        await page.get_by_label("Find any id").fill("nowhere")
        await page.get_by_role("button", name="Find").click()
        await expect(page.get_by_text("Nothing has this id.")).to_be_visible(timeout=PATIENCE)
        await page.close()


async def test_a_response_that_refreshes_nothing_leaves_the_page_stale(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    async with served(dependencies) as url:
        page = await open_page(browser, url, [])
        await page.clock.install(time="2026-01-31T09:30:00Z")
        await page.goto("/")
        answered: list[str] = []

        async def refuse(route: Route) -> None:
            answered.append(route.request.url)
            await route.fulfill(status=503, body="no")

        await page.route("**/overview", refuse)
        await page.clock.run_for(2_500)

        async def was_refused() -> bool:
            await page.clock.run_for(500)
            return len(answered) >= 2

        await eventually(was_refused, 60, "two refused renewals")
        await page.clock.run_for(12_000)
        stale = page.locator("#stale")
        await expect(stale).to_be_visible(timeout=PATIENCE)
        await expect(stale).to_contain_text(re.compile(r"from 09:3\d:\d\d UTC"), timeout=PATIENCE)
        # Only the part that could not be renewed is marked as old.
        await expect(page.locator("#live")).to_have_class("old", timeout=PATIENCE)
        await expect(page.locator("#outages")).not_to_have_class("old", timeout=PATIENCE)
        await expect(page.locator("#updated")).to_have_text(re.compile(r"updated \d{2,} s ago"), timeout=PATIENCE)
        # The next response that refreshes the page ends it.
        await page.unroute("**/overview")

        async def is_fresh() -> bool:
            await page.clock.run_for(1_000)
            return await stale.is_hidden() and await page.locator(".old").count() == 0

        await eventually(is_fresh, 60, "the page to be renewed")
        await page.close()


async def a_sample(dependencies: ConsoleDependencies) -> datetime:
    """Record the sample of a minute; return its time."""
    at = whole_minute(utc_now()) - timedelta(minutes=2)
    state = SampleState(at, [], [Sample(at, accepted=7, settled=5).as_document()])
    await SampleRecords(dependencies.operations).move_on(None, state)
    return at


async def test_times_are_those_of_the_viewer_with_utc_on_hover(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    errors: list[str] = []
    await record_action(dependencies.operations, by="op-1", why="x", action="test", subject="s", outcome="done")
    at, sampled = (await list_actions(dependencies.operations)).items[0]["at"], await a_sample(dependencies)
    in_utc, in_caracas = (f"{time:%Y-%m-%d %H:%M:%S}" for time in (at, at - timedelta(hours=4)))
    async with served(dependencies) as url:
        page = await open_page(browser, url, errors, zone="America/Caracas")
        await page.goto("/actions")
        time, footer = page.locator("main td time"), page.get_by_role("contentinfo")
        await expect(time).to_have_text(in_caracas, timeout=PATIENCE)
        await expect(time).to_have_attribute("title", f"{in_caracas} GMT-4\n{in_utc} UTC", timeout=PATIENCE)
        await expect(footer).to_contain_text("Times in America/Caracas", timeout=PATIENCE)
        await page.get_by_role("button", name="Show times in UTC").click()
        await expect(time).to_have_text(in_utc, timeout=PATIENCE)
        await page.reload()
        await expect(time).to_have_text(in_utc, timeout=PATIENCE)
        await expect(footer).to_contain_text("Times in UTC", timeout=PATIENCE)
        await page.get_by_role("button", name="Show times in America/Caracas").click()
        await page.goto("/")
        local = f"{sampled - timedelta(hours=4):%Y-%m-%d %H:%M:%S} GMT-4"
        titles = await page.locator(".chart-throughput title").all_text_contents()
        assert f"{local} ({sampled:%Y-%m-%d %H:%M:%S} UTC): accepted 7/min, settled 5/min" in titles
        await page.close()
        without_scripts = await browser.new_context(java_script_enabled=False, timezone_id="America/Caracas")
        page = await without_scripts.new_page()
        await page.set_extra_http_headers(ADMIN)
        await page.goto(f"{url}/actions")
        await expect(page.locator("main td time")).to_have_text(in_utc, timeout=PATIENCE)
        await expect(page.get_by_role("contentinfo")).to_contain_text("Times in UTC", timeout=PATIENCE)
        await without_scripts.close()
    assert errors == []


async def test_charts_are_renewed_and_their_table_stays_open(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    sampled = await a_sample(dependencies)
    async with served(dependencies) as url:
        page = await open_page(browser, url, [], zone="America/Caracas")
        await page.clock.install()
        await page.goto("/?range=6h")
        await page.get_by_text("The numbers as a table").click()
        row = page.get_by_role("row").filter(has_text="accepted 7/min, settled 5/min")
        await expect(row).to_be_visible(timeout=PATIENCE)
        async with page.expect_response("**/overview/charts?range=6h", timeout=PATIENCE) as renewed:
            await page.clock.run_for(31_000)
        await (await renewed.value).finished()
        await page.clock.run_for(1_000)
        step = sampled - timedelta(minutes=sampled.minute % 5)
        local = f"{step - timedelta(hours=4):%Y-%m-%d %H:%M:%S}"
        await expect(row.get_by_role("rowheader")).to_have_text(local, timeout=PATIENCE)
        await expect(row).to_be_visible(timeout=PATIENCE)
        await page.close()


async def seldom_refreshed(dependencies: ConsoleDependencies) -> str:
    """Store a replay that ended long ago, with an outcome that is not known yet; return the URL of its page."""
    await record_letters(dependencies, a_letter("o1"))
    letters = DeadLetterService(dependencies.operations)
    replay = await letters.start_replay(Filters(order_id="o1"), by="op-1", why="fixed")
    at = utc_now() - timedelta(hours=1)
    over = {"$set": {"status": "done", "doneAt": at, "published": 1}}
    await dependencies.operations["replays"].update_one({"_id": replay}, over)
    entry = {"replay": replay, "outcome": "pending", "at": at, "outcomeAt": at, "messageId": "r1", "by": "op-1"}
    await dependencies.operations["dead_letters"].update_one({}, {"$set": {"replays": [entry], "status": "pending"}})
    return f"/dead-letters/replays/{replay}"


async def test_a_page_says_when_its_data_is_old(dependencies: ConsoleDependencies, browser: Browser) -> None:
    async with served(dependencies) as url:
        page = await open_page(browser, url, [])
        await page.clock.install()
        await page.goto(await seldom_refreshed(dependencies))
        await expect(page.locator("#stale")).to_be_hidden(timeout=PATIENCE)
    await page.clock.run_for(20_000)
    await expect(page.locator("#stale")).to_be_visible(timeout=PATIENCE)
    # A part that is renewed every 30 s is not old yet.
    await expect(page.locator("#outages")).to_have_class("old", timeout=PATIENCE)
    await expect(page.locator("#live")).not_to_have_class("old", timeout=PATIENCE)
    await page.clock.run_for(30_000)
    await expect(page.locator("#live")).to_have_class("old", timeout=PATIENCE)
    await page.close()


async def test_every_page_names_what_is_away_since_when_and_what_to_do(
    mongodb_url: str, amqp_url: str, database_prefix: str, browser: Browser
) -> None:
    async with (
        Proxy(URL(amqp_url)).open() as broker,
        console_dependencies(mongodb_url, str(broker.url), database_prefix) as dependencies,
        served(dependencies) as url,
    ):
        page = await open_page(browser, url, [])
        await page.goto("/orders")
        banner = page.get_by_role("status", name="Outages")
        await expect(banner).to_contain_text("The payment service cannot be used since 20", timeout=PATIENCE)
        await expect(banner).to_contain_text("Nothing is charged or refunded", timeout=PATIENCE)
        await expect(banner).not_to_contain_text("RabbitMQ", timeout=PATIENCE)
        await broker.die()
        # The page itself is not loaded again.
        lost = banner.get_by_text("RabbitMQ cannot be used since")
        await expect(lost).to_be_visible(timeout=PATIENCE)
        since = await banner.locator("time").first.get_attribute("datetime")
        for path in ("/inventory", "/dead-letters", "/nowhere"):
            await page.goto(path)
            await expect(lost).to_contain_text("nothing is reserved or charged until", timeout=PATIENCE)
            assert await banner.locator("time").first.get_attribute("datetime") == since
        await lost.get_by_role("link", name="What to do").click()
        await expect(page.get_by_label("Text of the runbook")).to_contain_text("DependencyDown", timeout=PATIENCE)
        await page.close()


async def test_a_page_that_does_not_exist_leads_on_by_keyboard(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    await fill(dependencies)
    async with served(dependencies) as url:
        page = await open_page(browser, url, [])
        answer = await page.goto("/no/such/page")
        assert answer is not None
        assert answer.status == 404
        await expect(page.get_by_role("alert")).to_have_text("The page /no/such/page does not exist", timeout=PATIENCE)
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.name") == "q":
                break
        await page.keyboard.type("o1")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/orders/o1", timeout=PATIENCE)
        await page.close()


async def test_shortcuts_lead_on_and_can_be_turned_off(dependencies: ConsoleDependencies, browser: Browser) -> None:
    errors: list[str] = []
    async with served(dependencies) as url:
        page = await open_page(browser, url, errors)
        await page.goto("/")
        await page.keyboard.press("3")
        await page.wait_for_url("**/orders", timeout=PATIENCE)
        await page.goto("/actions")
        await page.keyboard.press("/")
        await page.keyboard.type("/3?")
        # Where somebody types, these are characters.
        await expect(page.get_by_role("searchbox", name="Find any id")).to_have_value("/3?", timeout=PATIENCE)
        await page.get_by_role("heading", name="Actions").click()
        await page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        await expect(dialog).to_be_visible(timeout=PATIENCE)
        await page.evaluate(AXE_SCRIPT)
        results = await page.evaluate("axe.run('dialog')")
        assert [violation["id"] for violation in results["violations"]] == []
        await dialog.get_by_label("Use shortcuts").uncheck()
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden(timeout=PATIENCE)
        # The setting lasts, and the button leads to it still.
        await page.reload()
        await page.keyboard.press("?")
        await page.keyboard.press("3")
        await page.get_by_role("button", name="Keyboard shortcuts").click()
        await expect(dialog.get_by_label("Use shortcuts")).not_to_be_checked(timeout=PATIENCE)
        assert page.url.endswith("/actions")
        await page.close()
    assert errors == []


async def test_an_id_is_copied(dependencies: ConsoleDependencies, browser: Browser) -> None:
    await fill(dependencies)
    async with served(dependencies) as url:
        page = await open_page(browser, url, [])
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        await page.goto("/orders/o1")
        await page.get_by_role("button", name="Copy the order's id").click()
        await expect(page.get_by_role("status").filter(has_text="Copied o1")).to_be_visible(timeout=PATIENCE)
        assert await page.evaluate("navigator.clipboard.readText()") == "o1"
        await page.close()


async def test_eighty_bodies_with_one_mistake_take_three_clicks_and_two_texts(
    dependencies: ConsoleDependencies, browser: Browser
) -> None:
    refund: dict[str, Any] = {"queue": "payment.inbox", "routing_key": "payment.refund"}
    bodies = [b'{"orderId": "o%d", "reason": %s}' % (n, b"7" if n < 80 else b'"late"') for n in range(82)]
    await record_letters(dependencies, *[a_letter(f"o{n}", body=body, **refund) for n, body in enumerate(bodies)])
    letters = DeadLetterService(dependencies.operations)
    (group,) = await letters.groups()
    errors: list[str] = []
    async with served(dependencies) as url:
        page = await open_page(browser, url, errors)
        hands = Hands(page)
        await page.goto(f"/dead-letters/groups/{group.fingerprint}")
        with hands.do(clicks=3, texts=2):
            await hands.press("Edit all…", "link")
            test, fix = '{"op":"test","path":"/reason","value":7}', '{"op":"replace","path":"/reason","value":"late"}'
            await hands.write("JSON patch (RFC 6902)", f"[{test},{fix}]")
            await hands.press("Preview")
            await expect(page.get_by_role("heading", name="80 letters changed, 2 left as they are")).to_be_visible(
                timeout=PATIENCE
            )
            await expect(page.locator("ins").first).to_have_text('"late"', timeout=PATIENCE)
            (right,) = (await letters.page(Filters(order_id="o81"))).items
            another = page.get_by_label("Another letter")
            await another.fill(right["_id"])
            await another.press("Enter")
            await expect(page.get_by_text("Left as it is: the test of /reason failed")).to_be_visible(timeout=PATIENCE)
            assert await letters.replays() == [], "Enter in a field sends nothing"
            await hands.write("Reason", "the shop sent a number")
            await hands.press("Edit and replay 80 letters")
            await page.wait_for_url("**/dead-letters/replays/*")
        await page.close()
    assert errors == []
    (replay,) = await letters.replays()
    assert (replay["total"], replay["why"], replay["careful"]) == (82, "the shop sent a number", True)
