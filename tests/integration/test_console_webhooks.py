"""The console's pages about webhooks, over the API of the notification service and a real database."""

import html
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import httpx
import pytest
from cryptography.fernet import Fernet

from notification_service.deliveries import Deliveries
from notification_service.delivery import Attempt, Delivery, Next, Status
from notification_service.endpoint import GONE, Endpoint, Secret
from notification_service.endpoints import Endpoints
from notification_service.schema import SCHEMA
from operations.actions import list_actions
from operations.console import ConsoleDependencies, webhooks
from shared import schema
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Database
from shared.services import NOTIFICATION
from tests.support.access import KEYS, bearer, key_authenticator
from tests.support.api_samples import wired
from tests.support.browser import run_browser
from tests.support.builders import connected
from tests.support.consoles import BY_ADMIN, NO_SERVICES, console_dependencies, pages_of, serve, served

NOW = utc_now().replace(microsecond=0)
HOUR = timedelta(hours=1)
REASON = {"why": "the shop asked"}
HOSTILE = '<script>alert("1")</script>'
LONG = "a-very-long-name-without-any-place-to-break-" * 4
WORKING, DEAD, NEW = "wh_working", "wh_dead", "wh_new"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, NOTIFICATION.database_in(database_prefix)) as found:
        await schema.prepare(found, SCHEMA)
        yield found


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ConsoleDependencies]:
    """A console, and three webhooks: one that works with an error, one that was disabled, and one without events."""
    await fill(database)
    monkeypatch.setenv("ORDERSAGA_WEBHOOK_KEY", Fernet.generate_key().decode())
    app = wired(NOTIFICATION, database, key_authenticator())
    async with (
        serve(app) as url,
        console_dependencies(mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"notification": url}) as found,
    ):
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def fill(database: Database) -> None:
    endpoints, deliveries = Endpoints(database), Deliveries(database, timedelta(days=30))
    for each in (an_endpoint(WORKING, description=HOSTILE), an_endpoint(DEAD), an_endpoint(NEW, user_id=LONG)):
        await endpoints.insert(each)
    await endpoints.disable(an_endpoint(DEAD), GONE, NOW)
    refused = Attempt(NOW - HOUR, 500, None, f"{HOSTILE} {LONG}", 0.25)
    unanswered = Attempt(NOW - 2 * HOUR, None, "No answer within 15 s", "", 15.0)
    ended: list[tuple[str, Status, Attempt]] = [
        *((f"evt_ok{number}", Status.DELIVERED, Attempt(NOW - HOUR, 204, None, "", 0.01)) for number in range(3)),
        ("evt_refused", Status.FAILED, refused),
        ("evt_old", Status.FAILED, unanswered),
    ]
    for name, status, attempt in ended:
        at = NOW - timedelta(days=2) if name == "evt_old" else NOW - HOUR
        await record(deliveries, WORKING, name, at, status, attempt)
    await record(deliveries, DEAD, "evt_dead", NOW - HOUR, Status.FAILED, Attempt(NOW - HOUR, 410, None, "", 0.1))


async def record(
    deliveries: Deliveries, endpoint_id: str, event_id: str, at: datetime, status: Status, attempt: Attempt
) -> None:
    """Record a delivery, its claim and its attempt, as the service does."""
    delivery = Delivery(endpoint_id, event_id, "order.confirmed", "{}", at, Status.PENDING, "shop", LONG, due_at=at)
    await deliveries.insert([delivery])
    (claimed,) = await deliveries.claim(endpoint_id, NOW, HOUR, 10)
    await deliveries.record([(claimed, attempt, Next(status, failure_reason=None))])


def an_endpoint(endpoint_id: str, *, user_id: str | None = None, description: str | None = None) -> Endpoint:
    url = f"https://shop.example/{endpoint_id}/{LONG}"
    secret = Secret(b"sealed", NOW)
    return Endpoint(
        endpoint_id, url, ("order.*",), (secret,), NOW, NOW, "shop", user_id=user_id, description=description
    )


async def text_of(pages: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await pages.get(path)
    assert response.status_code == status, (path, response.text)
    assert HOSTILE not in response.text
    return response.text


async def test_the_list_shows_state_success_rate_and_last_error(pages: httpx.AsyncClient) -> None:
    text = await text_of(pages, "/webhooks")
    rows = {row.split('"')[0]: row for row in text.split('href="/webhooks/')[1:]}
    # Of the last day three of four were delivered; the fifth is older.
    assert "75.0 % of 4" in rows[WORKING]
    assert "answered 500" in rows[WORKING]
    assert "disabled" in rows[DEAD]
    assert GONE in rows[DEAD]
    assert "none ended" in rows[NEW]


async def test_a_webhook_lists_its_deliveries_by_status(pages: httpx.AsyncClient) -> None:
    text = await text_of(pages, f"/webhooks/{WORKING}")
    assert "3 delivered, 1 failed, 0 waiting" in text
    assert "evt_ok1" in text
    assert "evt_old" in text
    failed = await text_of(pages, f"/webhooks/{WORKING}?status=FAILED")
    assert "evt_refused" in failed
    assert "evt_ok1" not in failed
    assert "No answer within 15 s" in failed
    delivery = await text_of(pages, f"/webhooks/{WORKING}/deliveries/evt_refused")
    assert "answered 500" in delivery
    assert "&lt;script&gt;" in delivery
    await text_of(pages, "/webhooks/wh_none", 404)
    await text_of(pages, f"/webhooks/{WORKING}/deliveries/evt_none", 404)


async def test_the_pages_of_a_list_keep_its_status(pages: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "DELIVERIES", 1)

    async def events(path: str) -> list[str]:
        """The deliveries of the page and of those after it, page by page."""
        text = await text_of(pages, path)
        found = re.findall(r"/deliveries/(evt_\w+)", text)
        following = re.search(r'href="([^"]+)" rel="next"', text)
        return found + (await events(html.unescape(following[1])) if following else [])

    assert await events(f"/webhooks/{WORKING}?status=FAILED") == ["evt_refused", "evt_old"]
    assert len(await events(f"/webhooks/{WORKING}")) == 5


async def test_one_delivery_or_all_that_failed_are_sent_again_for_a_reason(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    async def failed() -> set[str]:
        query = {"endpointId": WORKING, "status": Status.FAILED}
        return {each["eventId"] async for each in dependencies.webhook_deliveries.find(query)}

    address = f"/webhooks/{WORKING}/deliveries/evt_refused"
    done = await pages.post(f"{address}/redeliver", data=REASON)
    assert (done.status_code, done.headers["location"]) == (303, address)
    assert await failed() == {"evt_old"}
    recent, old = f"{NOW - timedelta(days=1):%Y-%m-%dT%H:%M}", f"{NOW - timedelta(days=3):%Y-%m-%dT%H:%M}"
    for since, left in ((recent, {"evt_old"}), (old, set())):
        done = await pages.post(f"/webhooks/{WORKING}/redeliver", data=REASON | {"since": since})
        assert (done.status_code, done.headers["location"]) == (303, f"/webhooks/{WORKING}")
        assert await failed() == left
    for given in ("yesterday", "9999-12-31T23:59-12:00"):
        wrong = await pages.post(f"/webhooks/{WORKING}/redeliver", data=REASON | {"since": given})
        assert (wrong.status_code, "like 2026-01-31T09:30" in wrong.text) == (422, True)
    entries = (await list_actions(dependencies.operations)).items
    assert {(entry["by"], entry["why"]) for entry in entries} == {(BY_ADMIN, REASON["why"])}
    assert [(entry["action"], entry["subject"]) for entry in entries if entry["outcome"] != "started"] == [
        ("webhook.redeliver-failed", WORKING),
        ("webhook.redeliver-failed", WORKING),
        ("webhook.redeliver", f"{WORKING}:evt_refused"),
    ]


async def test_a_disabled_webhook_must_be_enabled_before_anything_is_sent_again(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    refused = await pages.post(f"/webhooks/{DEAD}/deliveries/evt_dead/redeliver", data=REASON)
    assert (refused.status_code, "Not done" in refused.text) == (409, True)
    assert 'action="/webhooks/wh_dead/enable"' in await text_of(pages, f"/webhooks/{DEAD}")
    done = await pages.post(f"/webhooks/{DEAD}/enable", data=REASON)
    assert done.status_code == 303
    text = await text_of(pages, f"/webhooks/{DEAD}")
    assert "/enable" not in text
    assert 'action="/webhooks/wh_dead/redeliver"' in text
    outcomes = [entry["outcome"] for entry in (await list_actions(dependencies.operations)).items]
    assert outcomes[:2] == ["enabled", "started"]
    assert outcomes[2].startswith("not done: ")


async def test_who_may_only_read_sees_no_form(pages: httpx.AsyncClient) -> None:
    viewer, operator = bearer(KEYS[Role.VIEWER]), bearer(KEYS[Role.OPERATOR])
    for path in (f"/webhooks/{WORKING}", f"/webhooks/{DEAD}", f"/webhooks/{WORKING}/deliveries/evt_refused"):
        page = await pages.get(path, headers=viewer)
        assert page.status_code == 200
        form = 'method="post" action="/webhooks'
        assert form not in page.text
        assert form in (await pages.get(path, headers=operator)).text
    refused = await pages.post(f"/webhooks/{DEAD}/enable", data=REASON, headers=viewer)
    assert refused.status_code == 403
    assert (await pages.get("/webhooks", headers=bearer(KEYS[Role.MANAGER]))).status_code == 403


async def test_the_pages_fit_a_phone(dependencies: ConsoleDependencies) -> None:
    width, errors = 390, []
    async with run_browser() as browser, served(dependencies) as url:
        page = await browser.new_page(
            base_url=url, extra_http_headers=bearer(KEYS[Role.ADMIN]), viewport={"width": width, "height": 800}
        )
        page.set_default_timeout(60_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        paths = ("", f"/{WORKING}", f"/{DEAD}", f"/{WORKING}/deliveries/evt_refused")
        for path in paths:
            await page.goto(f"/webhooks{path}")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert errors == []
