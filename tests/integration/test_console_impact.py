"""What dead letters and outages mean for customers, the lists that leave nothing out, and the search for any id."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from operations.console import ConsoleDependencies
from operations.console.impacts import ImpactCache, ReplayImpactCache
from operations.console.outages import OutageWatch, StackChecks
from operations.console.wording import clock
from operations.dead_letters.filters import Filters, query
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.groups import Group
from operations.dead_letters.service import DeadLetterService
from operations.dead_letters.status import OPEN
from operations.impact import ranking, reading
from operations.impact.impact import Impact, impact_of
from operations.impact.of_letters import concerned
from operations.impact.ranking import RankedPage, Sorting, rank_groups
from operations.impact.reading import ImpactReader
from operations.order_actions.bulk import BY_COMMAND, BulkActions
from operations.sign_in.person import Person
from order_service.order_number import order_number
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.contracts.orders import SLOT_PREFIX
from shared.database import Document
from tests.support.access import KEYS, bearer
from tests.support.consoles import a_letter, console_dependencies, pages_of, record_letters

NOW = utc_now()
PAID = "paid twice by the card of"
UNKNOWN = "Unknown product"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix) as found:
        yield found


def an_order(order_id: str, **changes: Any) -> Document:
    order = {
        "_id": order_id,
        "userId": "u1",
        "ownerId": "shop-1",
        "items": [{"productId": "p1", "quantity": 1, "price": 1000}],
        "totalAmount": 1000,
        "currency": "EUR",
        "status": "PENDING",
        "stockStatus": "PENDING",
        "paymentStatus": "PENDING",
        "settled": False,
        "createdAt": NOW,
        "updatedAt": NOW,
        "deadline": NOW + timedelta(hours=2),
        "history": [],
        "version": 1,
    }
    return order | changes


async def fill(dependencies: ConsoleDependencies) -> None:
    """Store two causes: many letters of cheap orders, and few letters of expensive ones."""
    await dependencies.orders.insert_many(
        [
            *(an_order(f"cheap{n}", userId=f"u{n}") for n in range(6)),
            an_order("dear1", totalAmount=90_000, userId="u1", deadline=NOW + timedelta(hours=1)),
            an_order("dear2", totalAmount=10_000, currency="USD", status="FAILED", dueAt=NOW + timedelta(hours=3)),
            an_order("over", totalAmount=10**7, settled=True, status="COMPLETED"),
        ]
    )
    await record_letters(
        dependencies,
        *(a_letter(f"cheap{n}", f"{UNKNOWN} p{n}") for n in range(6)),
        *(a_letter(order, f"{PAID} u1", queue="payment.inbox", ago=timedelta(hours=5)) for order in ("dear1", "dear2")),
        a_letter("nowhere", f"{PAID} u1", queue="payment.inbox", ago=timedelta(hours=5)),
        a_letter("over", "late answer of order 1", queue="order.inbox", routing_key="stock.reserved"),
    )


async def ranked(dependencies: ConsoleDependencies, filters: GroupFilters | None = None, **asked: Any) -> RankedPage:
    service = DeadLetterService(dependencies.operations)
    impacts = ImpactReader(dependencies.client, dependencies.prefix)
    return await rank_groups(service, impacts, filters or GroupFilters(), **({"limit": 10} | asked))


def causes(page: RankedPage) -> list[str]:
    return [" ".join(group.title.split()[:2]) for group, _ in page.items]


async def text_of(pages: httpx.AsyncClient, path: str, status: int = 200, **options: Any) -> str:
    response = await pages.get(path, **options)
    assert response.status_code == status, (path, response.text)
    return response.text


# --- Impact. ---


async def test_groups_are_sorted_by_harm_and_say_what_it_is(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(dependencies)
    page = await ranked(dependencies)
    assert causes(page) == ["paid twice", "Unknown product", "late answer"]
    paid, unknown, late = (impact for _, impact in page.items)
    assert (paid.total.orders, paid.total.customers, paid.unknown, paid.complete) == (2, 1, 1, True)
    assert paid.unsettled.amounts == {"EUR": 90_000, "USD": 10_000}
    assert paid.by_status == {"FAILED": 1, "PENDING": 1}
    assert paid.deadline == NOW.replace(microsecond=NOW.microsecond // 1000 * 1000) + timedelta(hours=1)
    assert (unknown.total.orders, unknown.unsettled.customers) == (6, 6)
    assert (late.total.orders, late.unsettled.orders, late.deadline) == (1, 0, None)
    assert causes(await ranked(dependencies, by=Sorting.LETTERS)) == ["Unknown product", "paid twice", "late answer"]
    assert causes(await ranked(dependencies, by=Sorting.OLDEST))[0] == "paid twice"
    assert causes(await ranked(dependencies, by=Sorting.NEWEST))[-1] == "paid twice"
    # What is not looked at is said.
    monkeypatch.setattr(reading, "MOST_OF_ALL", 4)
    cut = {group.title.split()[0]: impact for group, impact in (await ranked(dependencies)).items}
    assert [cut[name].complete for name in ("paid", "Unknown", "late")] == [False, False, True]
    assert cut["Unknown"].total.orders <= 2
    assert not (await ranked(dependencies)).all_ranked


async def test_groups_beyond_those_whose_harm_is_compared_follow_them(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_letters(
        dependencies,
        *(a_letter(f"o{n}", f"{letter}-kind of error", ago=timedelta(hours=n)) for n, letter in enumerate("abcde")),
    )
    await dependencies.orders.insert_many([an_order("o2", totalAmount=500), an_order("o4", totalAmount=10**6)])
    monkeypatch.setattr(ranking, "MOST_RANKED", 3)
    seen = [causes(await ranked(dependencies, limit=2, skip=skip)) for skip in (0, 2, 4, 6)]
    assert [name for page in seen for name in page] == [f"{letter}-kind of" for letter in "cabde"]
    page = await ranked(dependencies, limit=2)
    assert (page.total, page.all_ranked) == (5, False)


async def test_groups_are_filtered(dependencies: ConsoleDependencies) -> None:
    await fill(dependencies)
    for filters, found in (
        (GroupFilters(queue="payment.inbox"), ["paid twice"]),
        (GroupFilters(service="order"), ["late answer"]),
        (GroupFilters(cause="UNKNOWN prod"), ["Unknown product"]),
        (GroupFilters(product="cheap3"), ["Unknown product"]),
        (GroupFilters(product="cheap3", queue="payment.inbox"), []),
        (GroupFilters(until=NOW - timedelta(hours=1)), ["paid twice"]),
        (GroupFilters(since=NOW - timedelta(hours=1)), ["Unknown product", "late answer"]),
        (GroupFilters(since=NOW - timedelta(hours=3), until=NOW - timedelta(hours=1)), []),
        (GroupFilters(status="resolved"), []),
    ):
        page = await ranked(dependencies, filters)
        assert (causes(page), page.total) == (found, len(found)), filters


async def test_the_pages_show_the_impact(dependencies: ConsoleDependencies) -> None:
    await fill(dependencies)
    async with pages_of(dependencies) as pages:
        groups = await text_of(pages, "/dead-letters")
        assert "Groups 1 to 3 of 3, sorted by harm" in groups
        assert groups.index("paid twice") < groups.index("Unknown product") < groups.index("late answer")
        assert "2 orders of 1 customer: 1 FAILED, 1 PENDING; 1 letter leads to no known order" in groups
        assert "900.00 EUR + 100.00 USD at stake" in groups
        assert "all settled: no money is at stake" in groups
        overview = await text_of(pages, "/overview")
        assert "3 of 3 groups, sorted by harm" in overview
        assert "900.00 EUR + 100.00 USD at stake" in overview
        (address,) = re.findall(r'href="(/dead-letters/groups/\w+)"><span class="count bad">3<', groups)
        group = await text_of(pages, address)
        assert "<title>paid twice by the card of …" in group
        for shown in (
            "Money at stake",
            "of 900.00 EUR + 100.00 USD in all",
            "Next deadline",
            f"{clock(NOW + timedelta(hours=1))} UTC",
            "3 of 3 letters",
        ):
            assert shown in group, shown
        assert "u1" not in groups.replace("paid twice by the card of u1", "")
        newest = await text_of(pages, "/dead-letters?sort=newest&inbox=payment.inbox&since=2020-01-01")
        assert "Groups 1 to 1 of 1, sorted by newest" in newest
        for wrong in ("sort=worst", "since=noon", "span=1y", "page=0"):
            await text_of(pages, f"/dead-letters?{wrong}", 422)


async def test_the_impact_is_kept_for_longer_the_longer_it_takes_to_read() -> None:
    """By a clock of the test's own, on which a reading takes a second."""
    seconds = [100.0]
    read: list[dict[str, int]] = []
    none = impact_of([])

    class Slow:
        async def of_groups(self, numbers: Mapping[str, int], shares: Mapping[str, int]) -> dict[str, Impact]:
            read.append(dict(numbers))
            seconds[0] += 1
            return dict.fromkeys(numbers, none)

    cache = ImpactCache(Slow(), lambda: seconds[0])
    assert await cache.of_groups({"a": 1, "b": 2}) == {"a": none, "b": none}
    seconds[0] = 119.9
    # The number of its letters has changed, or it was not known.
    await cache.of_groups({"a": 3, "b": 2, "c": 1})
    seconds[0] = 120.1
    await cache.of_groups({"a": 3, "b": 2})
    assert read == [{"a": 1, "b": 2}, {"a": 3, "c": 1}, {"b": 2}]


async def test_the_impact_of_a_replay_is_read_once_for_all_its_pages() -> None:
    """By a clock of the test's own, on which a reading takes a second."""
    seconds, read, none = [100.0], list[str](), impact_of([])

    class Slow:
        async def of_replay(self, replay_id: str) -> Impact:
            read.append(replay_id)
            seconds[0] += 1
            return none

    cache = ReplayImpactCache(Slow(), lambda: seconds[0])
    assert await asyncio.gather(*(cache.of_replay("a") for _ in range(5))) == [none] * 5
    await cache.of_replay("b")
    seconds[0] = 119.9
    await cache.of_replay("a")
    assert read == ["a", "b"]
    seconds[0] = 120.1
    await cache.of_replay("a")
    assert read == ["a", "b", "a"]


async def test_groups_are_compared_by_the_same_effort(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group with a new letter is read alone, but not further than the others."""
    monkeypatch.setattr(reading, "MOST_OF_ALL", 8)
    await dependencies.orders.insert_many([an_order(f"{name}{n}") for name in "ab" for n in range(7)])
    await record_letters(dependencies, *(a_letter(f"{name}{n}", f"{name}-kind") for name in "ab" for n in range(6)))
    cache = ImpactCache(ImpactReader(dependencies.client, dependencies.prefix), lambda: 0.0)
    service = DeadLetterService(dependencies.operations)

    async def harms() -> dict[str, int]:
        page = await rank_groups(service, cache, GroupFilters(), limit=10)
        assert not page.all_ranked
        assert "Some have too many letters" in page.caveat
        return {group.title: impact.total.orders for group, impact in page.items}

    assert list((await harms()).values()) == [4, 4]
    await record_letters(dependencies, a_letter("a6", "a-kind"))
    assert list((await harms()).values()) == [4, 4]
    # What was read with less effort for a long list is read again for a short one.
    alone = await rank_groups(service, cache, GroupFilters(cause="a-kind"), limit=10)
    assert ([impact.total.orders for _, impact in alone.items], alone.all_ranked) == ([7], True)
    async with pages_of(dependencies) as pages:
        assert "Some have too many letters to look at all of them" in await text_of(pages, "/overview")


async def test_whom_letters_concern_is_read_within_bounds(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(dependencies)
    await record_letters(dependencies, *(a_letter("nowhere", queue=f"{name}.inbox") for name in ("order", "inventory")))
    everything = query(Filters(status=OPEN))
    found = await concerned(dependencies.client, dependencies.prefix, everything)
    # Letters are counted, not the orders that they name.
    assert (found.letters, found.impact.unknown, found.impact.total.orders) == (12, 3, 9)
    await dependencies.orders.update_one({"_id": "cheap1"}, {"$set": {"settled": True, "status": "COMPLETED"}})
    again = await concerned(dependencies.client, dependencies.prefix, everything)
    assert (again.summary, again.impact == found.impact) == (found.summary, False)
    monkeypatch.setattr(reading, "MOST_OF_ONE", 5)
    cut = await concerned(dependencies.client, dependencies.prefix, everything)
    assert (cut.letters, cut.impact.complete, cut.summary) == (12, False, "12")
    assert cut.impact.total.orders + cut.impact.unknown <= 5
    async with pages_of(dependencies) as pages:
        asked = await text_of(pages, "/dead-letters/many/replay?matching=1")
        assert "<h1>Replay 12 dead letters, at least" in asked
        assert "at stake" in asked


async def test_an_outage_says_which_orders_wait_for_it(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dependencies.orders.insert_many(
        [
            an_order("both"),
            an_order("paying", stockStatus="RESERVED", userId="u2", totalAmount=500),
            an_order("deciding", status="FAILED", stockStatus="RESERVED", paymentStatus="PROCESSED"),
            an_order("over", status="COMPLETED", settled=True),
        ]
    )
    reader = ImpactReader(dependencies.client, dependencies.prefix)
    waiting = await reader.of_outages(["inventory", "payment", "provisioning", "RabbitMQ"], utc_now())
    counted = {name: (impact.total.orders, impact.total.customers) for name, impact in waiting.items()}
    assert counted == {"inventory": (1, 1), "payment": (2, 2), "provisioning": (0, 0), "RabbitMQ": (2, 2)}
    assert waiting["payment"].unsettled.amounts == {"EUR": 1500}
    monkeypatch.setattr(reading, "MOST_WAITING", 1)
    cut = await reader.of_outages(["payment"], utc_now())
    assert (cut["payment"].total.orders, cut["payment"].complete) == (1, False)
    monkeypatch.undo()
    # No service of these tests answers, so all are away: one banner names them.
    watch = OutageWatch(dependencies, StackChecks(dependencies))
    await watch.refresh()
    shown = {outage.name: outage.waiting.total.orders for outage in watch.outages if outage.waiting}
    assert shown == {"order": 2, "inventory": 1, "payment": 2, "provisioning": 0}
    async with pages_of(dependencies) as pages:
        banner = await text_of(pages, "/outages")
        assert banner.count('class="notice bad"') == 1
        assert "5 parts do not work." in banner
        assert "2 orders of 2 customers: 2 PENDING" in banner
        assert "15.00 EUR at stake" in banner


# --- Lists. ---


async def test_every_list_says_how_many_there_are_and_has_pages(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(dependencies)
    for module in ("dead_letters.PAGE", "bulk.PAGE", "bulk.SHOWN_RESULTS"):
        monkeypatch.setattr(f"operations.console.{module}", 2)
    letters = DeadLetterService(dependencies.operations)
    for number in range(3):
        await letters.start_replay(Filters(order_id=f"cheap{number}"), by="ann", why="again")
    bulk = BulkActions(dependencies.operations)
    selected = await dependencies.orders.find({}, sort=[("_id", 1)], limit=5).to_list(None)
    ann = Person("ann", "Ann", frozenset())
    chosen: dict[str, Any] = {"person": ann, "why": "provider is back", "action": "retry", "selection": {}, "rate": 1.0}
    started = [await bulk.start(selected, **chosen, via=BY_COMMAND) for _ in range(3)]
    async with pages_of(dependencies) as pages:
        for address, noun, each, number in (
            ("/dead-letters/list", "10 letters match; 2 on this page", r'/dead-letters/letters/(\w+)"', 10),
            ("/dead-letters/list?sort=oldest", "oldest failure first", r'/dead-letters/letters/(\w+)"', 10),
            ("/dead-letters/replays", "of 3, newest first", r'/dead-letters/replays/(\w+)"', 3),
            ("/bulk-actions", "of 3, newest first", r'/bulk-actions/results/(\w+)"', 3),
            (f"/bulk-actions/results/{started[0]['_id']}", "of 5;", r'"/orders/(\w+)"', 5),
        ):
            seen, path = list[str](), address
            while path:
                text = await text_of(pages, path)
                assert noun in text, (path, text)
                seen += re.findall(each, text)
                following = re.search(r'href="([^"]+)" rel="next"', text)
                path = following[1].replace("&amp;", "&") if following else ""
            assert (len(seen), len(set(seen))) == (number, number), address
        assert 'href="/bulk-actions"' in await text_of(pages, "/orders")
        assert "3 letters match" in await text_of(pages, "/dead-letters/list?inbox=payment.inbox&until=1h")
        assert "1 letter matches" in await text_of(pages, "/dead-letters/list?product=cheap2")


async def test_orders_are_counted_filtered_and_sorted(dependencies: ConsoleDependencies) -> None:
    at = [NOW - timedelta(days=day) for day in range(60)]
    orders = [an_order(f"o{n:02}", createdAt=day, userId="u9", ownerId="shop-2") for n, day in enumerate(at)]
    await dependencies.orders.insert_many(
        [*orders, an_order("other", items=[{"productId": "p7"}], failureCode="out_of_stock")]
    )
    async with pages_of(dependencies) as pages:
        for asked, total, first in (
            ("owner=shop-2", 60, "o00"),
            ("owner=shop-2&sort=oldest", 60, "o59"),
            ("user=u9&span=24h", 1, "o00"),
            (f"owner=shop-2&since={(NOW - timedelta(days=10, hours=1)):%Y-%m-%dT%H:%M}&until=36h", 9, "o02"),
            ("product=p7", 1, "other"),
            ("code=out_of_stock", 1, "other"),
        ):
            text = await text_of(pages, f"/orders?{asked}")
            assert f"{total} order{'s' if total != 1 else ''} match" in text, asked
            assert re.findall(r'href="/orders/(\w+)"', text)[0] == first, asked
        seen, path = list[str](), "/orders?owner=shop-2&sort=oldest"
        while path:
            text = await text_of(pages, path)
            seen += re.findall(r'href="/orders/(o\d\d)"', text)
            following = re.search(r'href="([^"]+)" rel="next"', text)
            path = following[1].replace("&amp;", "&") if following else ""
        assert seen == [f"o{n:02}" for n in range(59, -1, -1)]
        await text_of(pages, "/orders?since=noon", 422)


# --- The search for any id. ---

ORDER = "0123456789abcdef0123456789abcdef"
NUMBER = str(order_number(ORDER))
BOOKED = f"{SLOT_PREFIX}1769850000"


async def store_one_of_each(dependencies: ConsoleDependencies) -> dict[str, str]:
    """Store one thing of each kind; return the page that each id leads to."""
    client, prefix = dependencies.client, dependencies.prefix
    await dependencies.orders.insert_one(an_order(ORDER, userId="customer-7", ownerId="shop-9"))
    await record_letters(dependencies, a_letter("order-of-letter"))
    letters = DeadLetterService(dependencies.operations)
    (letter,) = (await letters.page(Filters())).items
    replay = await letters.start_replay(Filters(ids=(letter["_id"],)), by="ann", why="again")
    person = Person("ann", "Ann", frozenset())
    chosen: dict[str, Any] = {"why": "w", "action": "retry", "selection": {}, "rate": 1.0, "via": BY_COMMAND}
    bulk = await BulkActions(dependencies.operations).start([{"_id": ORDER}], person=person, **chosen)
    await dependencies.operations["approvals"].insert_one({"_id": "a" * 16, "action": "order.refund", "status": "done"})
    await client[f"{prefix}_inventory"]["products"].insert_one({"_id": "basil", "kind": "goods", "quantity": 12})
    await client[f"{prefix}_inventory"]["products"].insert_one({"_id": BOOKED, "end": NOW})
    await client[f"{prefix}_inventory"]["reservations"].insert_one({"_id": "orphan", "status": "RESERVED"})
    await client[f"{prefix}_provisioning"]["addresses"].insert_one({"_id": "103.181.9.7", "orderId": ORDER})
    await dependencies.packages.insert_one({"_id": "103.181.9", "name": "103.181.9.x", "ipv4": 3})
    await dependencies.webhook_deliveries.insert_one({"_id": "hook:event", "endpointId": "hook", "status": "pending"})
    return {
        ORDER: f"/orders/{ORDER}",
        NUMBER: f"/orders/{ORDER}",
        NUMBER.replace("-", "").lower(): f"/orders/{ORDER}",
        "customer-7": "/orders?user=customer-7",
        "shop-9": "/orders?owner=shop-9",
        letter["_id"]: f"/dead-letters/letters/{letter['_id']}",
        letter["fingerprint"]: f"/dead-letters/groups/{letter['fingerprint']}",
        replay: f"/dead-letters/replays/{replay}",
        bulk["_id"]: f"/bulk-actions/results/{bulk['_id']}",
        "a" * 16: "/approvals",
        "basil": "/inventory?product=basil",
        "orphan": "/orders/orphan",
        "103.181.9.7": f"/orders/{ORDER}",
        "103.181.9": "/packages",
        "103.181.9.x": "/packages",
        BOOKED: f"/slots/{quote(SLOT_PREFIX, safe='')}1769850000",
        "hook": "/webhooks/hook",
        "hook:event": "/webhooks/hook/deliveries/event",
    }


async def test_any_id_leads_to_its_page(dependencies: ConsoleDependencies) -> None:
    expected = await store_one_of_each(dependencies)
    payments = dependencies.client[f"{dependencies.prefix}_payments"]
    await payments["accounts"].insert_one({"_id": "retainer:r1", "balance": 1250, "currency": "EUR"})
    async with pages_of(dependencies) as pages:
        for text, address in expected.items():
            answer = await pages.get("/search", params={"q": f" {text} "})
            assert (answer.status_code, answer.headers.get("location")) == (303, address), text
        # What has no page says what it is, and what begins so is listed.
        account = await text_of(pages, "/search", params={"q": "r1"})
        assert "12.50 EUR; see `ordersaga accounts show retainer:r1`" in account
        similar = await text_of(pages, "/search", params={"q": ORDER[:9]})
        assert f'href="/orders/{ORDER}"' in similar
        naming = await text_of(pages, "/search", params={"q": "order-of-letter"})
        assert "/dead-letters/list?text=order-of-letter" in naming
        offered = await text_of(pages, "/search", params={"q": f"{SLOT_PREFIX}1"})
        assert "never booked" in offered
        nothing = await text_of(pages, "/search", params={"q": "'{$gt: <b>"})
        assert "Nothing has this id." in nothing
        assert "<b>" not in nothing
        assert "Looked in: ids and numbers of orders" in nothing
        await text_of(pages, "/search")
        await text_of(pages, "/search", 422, params={"q": "x" * 201})
        assert 'action="/search"' in await text_of(pages, "/no/such/page", 404)


async def test_a_search_says_where_a_role_may_not_look(dependencies: ConsoleDependencies) -> None:
    expected = await store_one_of_each(dependencies)
    personal = {"customer": {"name": "Vera Weiss"}, "words": ["vera", "weiss"]}
    await dependencies.orders.update_one({"_id": ORDER}, {"$set": {"personal": personal}})
    async with pages_of(dependencies) as pages:
        letter = next(text for text, address in expected.items() if "/letters/" in address)
        accountant = bearer(KEYS[Role.ACCOUNTANT])
        hidden = await text_of(pages, "/search", params={"q": letter}, headers=accountant)
        assert "Nothing has this id." in hidden
        assert "Your role may not look in" in hidden
        assert "dead letters (<code>letters:read</code>)" in hidden
        viewer = await text_of(pages, "/search", params={"q": "Vera"}, headers=bearer(KEYS[Role.VIEWER]))
        assert "Nothing has this id." in viewer
        assert "addresses (<code>orders:fulfil</code>)" in viewer
        operator = await text_of(pages, "/search", params={"q": "Vera"}, headers=bearer(KEYS[Role.OPERATOR]))
        assert "/orders?customer=Vera" in operator


def test_a_group_has_a_title_without_what_is_hidden() -> None:
    group = Group("f", "new", [], "order", "q", "r", "ValueError", "no such order # of ann", 1, 1, NOW, NOW, [])
    assert group.title == "no such order … of ann"
