"""An incident in a real browser, counted in clicks and texts: from the alert to "verified, nobody is left waiting".

500 orders go well, 300 messages fail for four causes, one order is stuck, four servers are not sold, and RabbitMQ and
MongoDB are away in turn. More dead letters, which are only recorded, bring it to 2,500 in 150 groups, and to 10,000
in the long form of `make test-seeds`.
"""

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import aiohttp
import pytest
from playwright.async_api import Page, expect
from pymongo import AsyncMongoClient
from yarl import URL

from operations.dead_letters.records import LetterRecords
from operations.demo.incident import SETTINGS, Incident, Sizes, make_incident
from operations.demo.shop_client import ShopClient
from operations.settings import Stack as Location
from shared.clock import utc_now
from shared.database import Document
from shared.services import CONSOLE, SERVICES, SIMULATOR
from tests.support.access import ADMIN, ADMIN_KEY
from tests.support.browser import Hands, run_browser
from tests.support.consoles import a_letter
from tests.support.eventually import eventually
from tests.support.processes import KEEP_SECONDS, Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.proxy import Proxy
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import Servers, delete_topology, drop_databases
from tests.support.simulators import run_simulator

PATIENCE = 120_000
"""Milliseconds that a page may take on a loaded machine."""

SIZES = Sizes(good=500, misread=80, lost=1, without_answer=120, foreign=99, not_json=1, servers=4, customers=10)
GROUPS, LETTERS = 150, 10_000 if IS_LONG_FORM else 1_000
KINDS, ON_A_PAGE = 4, 50
WEBHOOK_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SHORT_NAMES = {name.removeprefix("ORDERSAGA_").lower(): value for name, value in SETTINGS.items()}


@dataclass(frozen=True)
class Night:
    """The incident, the console over it, and the servers that can be away."""

    stack: Stack
    incident: Incident
    broker: Proxy
    database: Proxy


@pytest.fixture
async def night(servers: Servers) -> AsyncIterator[Night]:
    prefix = f"t{secrets.token_hex(8)}"
    direct = URL(servers.mongodb_url).update_query(directConnection="true").without_query_params("replicaSet")
    await delete_topology(servers.amqp_url)
    settings = {**SHORT_DELAYS, **SHORT_NAMES, "webhook_key": WEBHOOK_KEY, "api_key": ADMIN_KEY}
    async with (
        Proxy(direct).open() as database,
        Proxy(URL(servers.amqp_url)).open() as broker,
        run_simulator() as simulator,
        run_stack(str(database.url), str(broker.url), prefix, **settings, **simulator.settings) as stack,
    ):
        others = [name for name in SERVICES if name != CONSOLE.name]
        await stack.start(*others, database_timeout_seconds=30)
        await stack.start(CONSOLE.name, **{f"{name}_url": stack.url(name) for name in others})
        urls = {name: stack.url(name) for name in SERVICES} | {SIMULATOR.name: simulator.url}
        location = Location(servers.mongodb_url, servers.amqp_url, urls, None, prefix, ADMIN_KEY)
        connector = aiohttp.TCPConnector(limit=10, keepalive_timeout=KEEP_SECONDS)
        async with aiohttp.ClientSession(connector=connector, headers=ADMIN) as session:
            incident = await make_incident(lambda _: None, location, ShopClient(session, location), SIZES)
        await record_more_letters(servers.mongodb_url, prefix, incident.good)
        yield Night(stack, incident, broker, database)
    await drop_databases(servers.mongodb_url, prefix)
    await delete_topology(servers.amqp_url)


async def record_more_letters(mongodb_url: str, prefix: str, orders: Sequence[str]) -> None:
    """Record letters of other causes about orders that are settled, as the ingest does."""
    now, causes = utc_now(), GROUPS - KINDS
    deliveries = []
    for number in range(LETTERS - SIZES.dead_letters):
        cause = "".join("abcdefghij"[int(digit)] for digit in f"{number % causes:03}")
        ago = timedelta(seconds=number % 3600)
        letter = a_letter(orders[number % len(orders)], f"no {cause} is known", ago=ago, now=now)
        deliveries.append(replace(letter, message_id=f"m{number}"))
    async with AsyncMongoClient[Document](mongodb_url, tz_aware=True, w="majority") as client:
        records = LetterRecords(client[CONSOLE.database_in(prefix)])
        for start in range(0, len(deliveries), 1000):
            await records.record(deliveries[start : start + 1000], now)


@asynccontextmanager
async def opened(night: Night, errors: list[str]) -> AsyncIterator[Page]:
    """A page of the console, for somebody who is signed in."""
    async with run_browser() as browser:
        page = await browser.new_page(
            base_url=night.stack.url(CONSOLE.name), extra_http_headers=ADMIN, viewport={"width": 1280, "height": 860}
        )
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page
        finally:
            expect.set_options(timeout=5000)


@pytest.mark.long_form
async def test_an_incident_from_the_alert_to_verified(night: Night) -> None:
    errors: list[str] = []
    async with opened(night, errors) as page:
        hands = Hands(page)
        await what_is_away_is_named(night, page)
        await the_harm_of_each_group_is_on_the_page(page)
        await nothing_is_cut_without_saying_so(page)
        await a_replay_in_vain_says_so_itself(hands)
        await eighty_bodies_with_one_mistake_are_one_edit(hands)
        await from_the_alert_to_verified_in_three_clicks(hands)
        await four_failed_servers_are_retried_with_one_text(hands)
        await a_stuck_order_is_nudged(hands, night.incident.lost[0])
        await what_nobody_needs_is_discarded(hands)
        await the_books_balance(hands)
    assert errors == []


async def what_is_away_is_named(night: Night, page: Page) -> None:
    """The banner names each server, since when, what that means and how many wait, on the page that is open."""
    await page.goto("/orders")
    banner = page.get_by_role("status", name="Outages")
    away = banner.get_by_text("cannot be used")
    await expect(away).to_have_count(0)
    for name, server, meaning in (
        ("RabbitMQ", night.broker, "nothing is reserved or charged"),
        ("MongoDB", night.database, "No order can be placed or read"),
    ):
        await server.die()
        await expect(banner).to_contain_text(re.compile(rf"{name} cannot be used since \d{{4}}-\d\d-\d\d .* UTC"))
        await expect(banner).to_contain_text(meaning)
        await expect(banner.get_by_role("link", name="What to do").first).to_be_visible()
        if server is night.broker:
            await expect(banner).to_contain_text("Waiting for it: 201 orders of 20 customers: 201 PENDING")
            await expect(banner).to_contain_text("USD at stake")
        await server.revive()
        await expect(away).to_have_count(0)


async def the_harm_of_each_group_is_on_the_page(page: Page) -> None:
    """Orders, customers and money of a group without a click, the most harm first, on the overview and the list."""
    harm = (
        "80 orders of 10 customers: 80 PENDING · 1,600.00 USD at stake · next deadline",
        "120 orders of 10 customers: 120 PENDING · 1,200.00 USD at stake · next deadline",
    )
    for address, said in (("/", "8 of 150 groups, sorted by harm"), ("/dead-letters", "Groups 1 to 50 of 150")):
        await page.goto(address)
        await expect(page.get_by_text(said)).to_be_visible()
        for place, words in enumerate(harm):
            await expect(page.locator(".group .impact").nth(place)).to_contain_text(words)
        await expect(page.locator(".group .impact", has_text="USD at stake")).to_have_count(len(harm))
    await expect(page.locator(".facts")).to_contain_text(f"dead {LETTERS:,}")


async def nothing_is_cut_without_saying_so(page: Page) -> None:
    """All groups are reached by the pager, and the totals are right; so are those of letters and orders."""
    await page.goto("/dead-letters")
    names, letters = set[str](), 0
    for number in range(GROUPS // ON_A_PAGE):
        first = number * ON_A_PAGE + 1
        await expect(page.get_by_text(f"Groups {first} to {first + ON_A_PAGE - 1} of {GROUPS}, sorted")).to_be_visible()
        links = page.locator(".group-link")
        await expect(links).to_have_count(ON_A_PAGE)
        names |= {str(await link.get_attribute("href")) for link in await links.all()}
        letters += sum(int(text.replace(",", "")) for text in await links.locator(".count").all_inner_texts())
        if number < GROUPS // ON_A_PAGE - 1:
            await page.get_by_role("link", name="Next page").click()
    assert (len(names), letters) == (GROUPS, LETTERS)
    await page.goto("/dead-letters/list")
    counted = f"{LETTERS:,} or more" if IS_LONG_FORM else f"{LETTERS:,}"
    await expect(page.get_by_text(f"{counted} letters match; {ON_A_PAGE} on this page")).to_be_visible()
    await page.goto("/orders")
    orders = SIZES.good + SIZES.misread + SIZES.lost + SIZES.without_answer + SIZES.servers
    await expect(page.get_by_text(f"{orders} orders match; {ON_A_PAGE} on this page")).to_be_visible()


async def open_group(hands: Hands, name: str) -> None:
    await hands.click(hands.page.locator(".group-link", has_text=name))


async def a_replay_in_vain_says_so_itself(hands: Hands) -> None:
    """Nothing is mended yet: it stops after the first message, is red, and says so with the group too."""
    page = hands.page
    await page.goto("/dead-letters")
    with hands.do(clicks=3, texts=1):
        await open_group(hands, "quantity")
        await expect(page.get_by_role("region", name="Impact")).to_contain_text("1,600.00 USD")
        group = page.url
        await hands.press("Replay all…", "link")
        await hands.write("Reason", "perhaps it works now")
        await hands.press("Replay 80 dead letters")
        await expect(page.locator(".notice.bad:visible", has_text="1 message failed again")).to_be_visible()
        await expect(page.locator(".notice.bad:visible", has_text="Stopped by itself")).to_be_visible()
    await expect(page.get_by_text("Every message was handled.")).to_have_count(0)
    await expect(page.get_by_text("Its orders now: 1 order of 1 customer: 1 PENDING")).to_be_visible()
    await page.goto(group)
    await expect(page.locator(".notice.bad:visible")).to_contain_text(
        re.compile(r"replayed by .* ago.*1 failed again", re.I)
    )


async def eighty_bodies_with_one_mistake_are_one_edit(hands: Hands) -> None:
    """One bulk edit with a preview, in place of a form for each letter."""
    page = hands.page
    with hands.do(clicks=3, texts=2):
        await hands.press("Edit all…", "link")
        await hands.write("JSON patch (RFC 6902)", '[{"op":"replace","path":"/items/0/quantity","value":2}]')
        await hands.press("Preview")
        await expect(page.get_by_role("heading", name="80 letters changed, 0 left as they are")).to_be_visible()
        await expect(page.locator("del").first).to_have_text('"two"')
        await expect(page.locator("ins").first).to_have_text("2")
        await hands.write("Reason", "a word in place of a number")
        await hands.press("Edit and replay 80 letters")
        await verified(page, "80 orders of 10 customers: 80 CONFIRMED")


async def from_the_alert_to_verified_in_three_clicks(hands: Hands) -> None:
    """The alert leads to the groups, the one with the most harm first."""
    page = hands.page
    await page.goto("/dead-letters")
    await expect(page.locator(".group-link").first).to_contain_text("payment.processed")
    with hands.do(clicks=3, texts=1):
        await hands.click(page.locator(".group-link").first)
        await hands.press("Replay all…", "link")
        await expect(page.get_by_text("PENDING → CONFIRMED, sends order.confirmed")).to_be_visible()
        await hands.write("Reason", "the orders are back")
        await hands.press("Replay 120 dead letters")
        await verified(page, "120 orders of 10 customers: 120 CONFIRMED")


async def verified(page: Page, orders: str) -> None:
    """The page of a replay says by itself that all is well, without a click."""
    done = "Every message was handled. Nobody is left waiting: all its orders are settled."
    await expect(page.locator(".notice.good")).to_have_text(done)
    await expect(page.get_by_text(f"Its orders now: {orders} · all settled: no money is at stake")).to_be_visible()
    await expect(page.locator(".notice.bad:visible")).to_have_count(0)


async def four_failed_servers_are_retried_with_one_text(hands: Hands) -> None:
    page = hands.page
    await page.goto("/")
    with hands.do(clicks=1, texts=1):
        await hands.write("Reason", "the provider has servers again")
        await hands.press("Retry 4 orders of 4 customers, 40.00 USD")
        await expect(page.get_by_text("Every order is retried.")).to_be_visible()

    async def are_completed() -> bool:
        await page.goto("/orders?status=COMPLETED")
        return await page.get_by_role("checkbox", name="Select order").count() == SIZES.servers

    await eventually(are_completed, PATIENCE / 1000, "the servers to be there")


async def a_stuck_order_is_nudged(hands: Hands, stuck: str) -> None:
    page = hands.page
    await page.goto(f"/orders/{stuck}")
    await expect(page.get_by_role("region", name="Waiting for")).to_contain_text("Reserving")
    with hands.do(clicks=2, texts=1):
        await hands.press("Nudge…", "link")
        await hands.write("Reason", "inventory never got it")
        await hands.press("Nudge the order")
        await expect(page.locator("#live .facts").first).to_contain_text("CONFIRMED")


async def what_nobody_needs_is_discarded(hands: Hands) -> None:
    """What is left in 148 groups is discarded at once, with a confirmation of what it concerns."""
    page, left = hands.page, LETTERS - SIZES.misread - SIZES.without_answer
    await page.goto("/dead-letters/list")
    with hands.do(clicks=3, texts=1):
        await hands.press("everything that matches", "checkbox")
        await hands.press("Discard…")
        heading = f"Discard {left:,} dead letters, 500 orders of 10 customers, 5,000.00 USD"
        await expect(page.get_by_role("heading", name=heading)).to_be_visible()
        await hands.write("Reason", "sent by a program for tests")
        await hands.press(f"Discard {left:,} dead letters")
        await page.wait_for_url("**/dead-letters/list?status=discarded")
    await page.goto("/")
    await expect(page.get_by_text("No open dead letters.")).to_be_visible()


async def the_books_balance(hands: Hands) -> None:
    with hands.do(clicks=2):
        await hands.click(hands.page.get_by_role("navigation", name="Pages").get_by_text("Audit"))
        await hands.press("Run an audit")
        await expect(hands.page.get_by_text("The books balance.")).to_be_visible()
