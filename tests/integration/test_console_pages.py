"""Every page of the console in an incident: it violates no WCAG 2.2 AA, reads as it should, and is a picture.

`make pages` writes the texts in `tests/samples/pages` and the pictures in `docs/images` anew, after an intended change:
read the difference of the texts, and look at the pictures.
"""

import difflib
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import aio_pika
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, FloatRect, Page, ViewportSize

from shared.bus.declaring import declare_topology
from shared.topology import RETRY_LADDER
from tests.support.access import ADMIN
from tests.support.browser import run_browser
from tests.support.console_pages import NOT_PAGES, PAGES, STATUSES, addresses, routes_for_get
from tests.support.consoles import an_app, served
from tests.support.incident import Incident, recorded_incident
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import Servers, delete_topology, drop_databases

PATIENCE = 60_000
"""Milliseconds that a page may take on a loaded machine."""
ROOT = Path(__file__).parents[2]
TEXTS, IMAGES = ROOT / "tests" / "samples" / "pages", ROOT / "docs" / "images"
WRITING = "ORDERSAGA_WRITE_PAGES" in os.environ
ALL = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS = ["color-contrast", "link-in-text-block"]
LAYOUT = ["target-size", "scrollable-region-focusable", *COLOURS]
LOOKS: list[tuple[int, Literal["light", "dark"], list[str]]] = [
    (1280, "light", ALL),
    (320, "dark", LAYOUT),
]
if IS_LONG_FORM:
    LOOKS += [(1280, "dark", ALL), (320, "light", ALL)]
"""Widths and colour schemes, with the rules whose result can be another one than that of the looks before."""

TALLEST = 1200
"""Pixels; what is below is not in a picture."""
PICTURES: Mapping[str, tuple[str, int, Literal["light", "dark"]]] = {
    "overview": ("overview", 1280, "light"),
    "dead-letters": ("dead-letters", 1280, "light"),
    "group": ("group", 1280, "light"),
    "letter": ("letter", 1280, "light"),
    "replay": ("replay", 1280, "light"),
    "order": ("order-server", 1280, "light"),
    "order-stuck": ("order-stuck", 1280, "light"),
    "order-on-a-phone": ("order-stuck", 390, "dark"),
}
"""The pictures in `docs/images`: the page, the width and the colour scheme of each."""
FRAME: tuple[Literal["banner", "contentinfo"], ...] = ("banner", "contentinfo")
"""What is around the content of each page."""


class Reading(NamedTuple):
    """What a screen reader has of a page, and what violates WCAG on it."""

    text: str
    violations: Sequence[str]


@pytest.fixture(scope="module")
async def incident(servers: Servers) -> AsyncIterator[Incident]:
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    async with await aio_pika.connect(servers.amqp_url) as connection:
        await declare_topology(connection, RETRY_LADDER)
    async with recorded_incident(servers.mongodb_url, servers.amqp_url, prefix) as recorded:
        yield recorded
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


@pytest.fixture(scope="module")
async def url(incident: Incident) -> AsyncIterator[str]:
    async with served(incident.dependencies) as found:
        yield found


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as found:
        yield found


async def open_page(browser: Browser, url: str) -> Page:
    size: ViewportSize = {"width": 1280, "height": 800}
    page = await browser.new_page(base_url=url, extra_http_headers=ADMIN, viewport=size, timezone_id="UTC")
    page.set_default_timeout(PATIENCE)
    # The pages do not renew themselves, nor say how old they are: each stays as it was opened.
    await page.route("**/htmx.min.js", lambda route: route.fulfill(body=""))
    await page.add_init_script("window.setInterval = () => 0")
    return page


def test_every_route_that_answers_get_is_looked_at_or_is_no_page(incident: Incident) -> None:
    routes = routes_for_get(an_app(incident.dependencies))
    assert routes - PAGES.keys() - NOT_PAGES.keys() == set(), "name them in tests/support/console_pages.py"
    assert (PAGES.keys() | NOT_PAGES.keys()) - routes == set(), "these routes are gone"


@pytest.fixture(scope="module")
async def readings(incident: Incident, url: str, browser: Browser) -> Mapping[str, Reading]:
    """Every page, opened once: what it reads like, and what axe finds."""
    page, found, wrong = await open_page(browser, url), dict[str, Reading](), dict[str, int]()
    for name, address in addresses(incident.ids):
        await page.emulate_media(color_scheme="light")
        await page.set_viewport_size({"width": 1280, "height": 800})
        answer = await page.goto(address)
        assert answer is not None
        if answer.status != STATUSES.get(name, 200):
            wrong[name] = answer.status
        if not found:
            parts = [await page.get_by_role(role).aria_snapshot() for role in FRAME]
            found["frame"] = Reading(without_address("\n".join(parts)), [])
        text = without_address(await page.locator("main").aria_snapshot())
        found[name] = Reading(text, [] if WRITING else [line async for line in violations(page)])
    await page.close()
    assert not wrong, f"not the pages that are meant: {wrong}"
    return found


async def violations(page: Page) -> AsyncIterator[str]:
    """Yield a line for each violation in each look: the look, the rule, and the elements."""
    await page.evaluate(AXE_SCRIPT)
    # A page that cannot be renewed must be legible, too.
    await page.evaluate("document.getElementById('live')?.classList.add('old')")
    for width, scheme, rules in LOOKS:
        await page.set_viewport_size({"width": width, "height": 800})
        await page.emulate_media(color_scheme=scheme)
        # A browser tells a page of its new size with the next frame, which can be later than the look.
        await page.evaluate("() => void dispatchEvent(new Event('resize'))")
        results = await page.evaluate("rules => axe.run({runOnly: rules, resultTypes: ['violations']})", rules)
        for each in results["violations"]:
            elements = "; ".join(" ".join(node["target"]) for node in each["nodes"][:5])
            yield f"{width} px, {scheme}: {each['id']} ({each['help']}): {elements}"


@pytest.mark.long_form
def test_no_page_violates_wcag(readings: Mapping[str, Reading]) -> None:
    found = [f"{name}, {line}" for name, reading in readings.items() for line in reading.violations]
    assert not found, "\n".join(found)


def test_every_page_reads_as_the_stored_text(readings: Mapping[str, Reading]) -> None:
    read = {f"{name}.txt": reading.text for name, reading in readings.items()}
    if WRITING:
        write(read)
    stored = {path.name: path.read_text() for path in TEXTS.iterdir()}
    changed = [name for name in sorted(read.keys() | stored.keys()) if read.get(name) != stored.get(name)]
    assert not changed, "".join(difference(name, stored, read) for name in changed) + "\n`make pages` writes them"


async def test_the_pictures_of_the_docs_are_taken_of_the_pages(incident: Incident, url: str, browser: Browser) -> None:
    """Pictures are compared by eye: fonts differ between machines."""
    page = await open_page(browser, url)
    pages = dict(addresses(incident.ids))
    for name, (shown, width, scheme) in PICTURES.items():
        await page.set_viewport_size({"width": width, "height": 860})
        await page.emulate_media(color_scheme=scheme)
        answer = await page.goto(pages[shown])
        assert answer is not None
        assert answer.ok, name
        if WRITING:
            height = await page.evaluate("document.documentElement.scrollHeight")
            clip: FloatRect = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)}
            await page.screenshot(path=IMAGES / f"{name}.png", full_page=True, clip=clip)
    await page.close()
    assert {path.stem for path in IMAGES.glob("*.png")} == PICTURES.keys(), "a picture that no test takes goes stale"
    docs = "".join(path.read_text() for path in (IMAGES.parent).rglob("*.md"))
    assert [name for name in PICTURES if f"images/{name}.png" not in docs] == [], "no page of the docs shows them"


def without_address(text: str) -> str:
    """Leave out the port, which differs in each run, and the lines of a traceback, which any change moves."""
    text = re.sub(r"http://127\.0\.0\.1:\d+", "", text)
    return re.sub(r"\bline \d+, in ", "line N, in ", text) + "\n"


def difference(name: str, stored: dict[str, str], read: dict[str, str]) -> str:
    before, after = (texts.get(name, "").splitlines(keepends=True) for texts in (stored, read))
    return "".join(difflib.unified_diff(before, after, f"stored/{name}", f"read/{name}"))


def write(read: dict[str, str]) -> None:
    TEXTS.mkdir(exist_ok=True)
    for path in TEXTS.iterdir():
        path.unlink()
    for name, text in read.items():
        (TEXTS / name).write_text(text)
