"""Delivery slots over HTTP: rules, single slots, and assignments to orders of other systems."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from inventory_service.api import create_router
from inventory_service.slots_api import create_slots_router
from inventory_service.timetable import slot_id
from shared.contracts import StockReleased, StockReservationFailed, StockReserved
from shared.database import Database
from shared.http import add_routes, create_app
from tests.support.access import ADMIN, key_authenticator
from tests.support.inventory_worker import (
    HandClock,
    Worker,
    empty,
    order,
    settle_everything,
    shared_database,
    unsettled_records,
)
from tests.support.servers import Servers

MAX_WAIT = 120.0
"""The longest wait for units that others may return: so long that it never ends on a slow machine."""
NOW = datetime(2026, 6, 1, 10, tzinfo=UTC)
STARTS = [NOW + timedelta(minutes=15 * n) for n in range(1, 6)]
FIRST, SECOND, THIRD, FOURTH, FIFTH = map(slot_id, STARTS)
DEFAULTS = {
    "durationMinutes": 15,
    "capacity": 100000,
    "openTime": "00:00",
    "closeTime": "24:00",
    "cutoffMinutes": 8,
    "leadMinutes": 30,
    "horizonSlots": 100,
}


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW)


@pytest.fixture(scope="module")
async def database(servers: Servers) -> AsyncIterator[Database]:
    async with shared_database(servers.mongodb_url) as (db,):
        yield db


@pytest.fixture
async def worker(database: Database, clock: HandClock) -> Worker:
    await empty(database)
    return Worker(database, max_wait=MAX_WAIT, clock=clock)


@pytest.fixture
async def http(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    async def nothing_is_down() -> dict[str, str]:
        return {}

    app = create_app("inventory", "", nothing_is_down, authenticator=key_authenticator())
    add_routes(app.router, create_router(worker.stock_items, worker.reservations))
    add_routes(
        app.router, create_slots_router(worker.rules, worker.slots, worker.assigner, worker.reservations, worker.clock)
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


def request(order_id: str = "x1", price: float = 60, **changes: Any) -> dict[str, Any]:
    return {"orderId": order_id, "orderPrice": price, "itemsCount": 2, **changes}


async def assign(http: httpx.AsyncClient, order_id: str = "x1", price: float = 60) -> httpx.Response:
    return await http.post("/slots/assign", json=request(order_id, price))


async def release(http: httpx.AsyncClient, order_id: str = "x1") -> httpx.Response:
    return await http.delete(f"/slots/assignments/{order_id}")


async def loads(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the loads of slots, without empty ones."""
    slots = (await http.get("/slots")).json()["items"]
    return {slot["slotId"]: slot["load"] for slot in slots if slot["load"]}


def assert_problem(answer: httpx.Response, status: int, detail: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == detail


async def test_rules_are_shown_and_changed_one_by_one(http: httpx.AsyncClient) -> None:
    assert (await http.get("/slots/config")).json() == DEFAULTS

    changed = await http.put("/slots/config", json={"capacity": 99.5, "closeTime": "02:00", "openTime": "22:00"})
    expected = {**DEFAULTS, "capacity": 99.5, "openTime": "22:00", "closeTime": "02:00"}
    assert (changed.status_code, changed.json()) == (200, expected)
    assert (await http.put("/slots/config", json={"leadMinutes": 0})).json() == {
        **expected,
        "leadMinutes": 0,
    }
    assert (await http.put("/slots/config", json={})).json() == {**expected, "leadMinutes": 0}
    assert (await http.put("/slots/config", json=DEFAULTS)).json() == (await http.get("/slots/config")).json()


async def test_opening_hours_may_pass_midnight(http: httpx.AsyncClient, clock: HandClock) -> None:
    hours = {"openTime": "23:00", "closeTime": "00:40", "durationMinutes": 20, "horizonSlots": 6}
    await http.put("/slots/config", json=hours)

    starts = [slot["start"][8:16] for slot in (await http.get("/slots")).json()["items"]]

    assert starts == ["01T23:00", "01T23:20", "01T23:40", "02T00:00", "02T00:20", "02T23:00"]
    clock.now = datetime(2026, 6, 2, 0, 10, tzinfo=UTC)
    assert (await assign(http)).json()["slotStart"] == "2026-06-02T00:20:00.000Z"


INVALID: list[tuple[str, str, Any, str]] = [
    ("PUT", "/slots/config", {"durationMinutes": 0}, "durationMinutes"),
    ("PUT", "/slots/config", {"durationMinutes": 1441}, "durationMinutes"),
    ("PUT", "/slots/config", {"durationMinutes": 7.5}, "durationMinutes"),
    ("PUT", "/slots/config", {"durationMinutes": "15"}, "durationMinutes"),
    ("PUT", "/slots/config", {"openTime": "08:00", "closeTime": "08:10"}, "durationMinutes"),
    ("PUT", "/slots/config", {"capacity": -0.01}, "capacity"),
    ("PUT", "/slots/config", {"capacity": 1.999}, "capacity"),
    ("PUT", "/slots/config", {"capacity": 1e300}, "capacity"),
    ("PUT", "/slots/config", {"capacity": "100"}, "capacity"),
    ("PUT", "/slots/config", {"openTime": "24:00"}, "openTime"),
    ("PUT", "/slots/config", {"openTime": "8:00"}, "openTime"),
    ("PUT", "/slots/config", {"openTime": "08:60"}, "openTime"),
    ("PUT", "/slots/config", {"openTime": 8}, "openTime"),
    ("PUT", "/slots/config", {"openTime": "08:00\n"}, "openTime"),
    ("PUT", "/slots/config", {"closeTime": "24:01"}, "closeTime"),
    ("PUT", "/slots/config", {"closeTime": "\u0660\u0668:\u0660\u0660"}, "closeTime"),
    ("PUT", "/slots/config", {"cutoffMinutes": -1}, "cutoffMinutes"),
    ("PUT", "/slots/config", {"leadMinutes": 10081}, "leadMinutes"),
    ("PUT", "/slots/config", {"horizonSlots": 0}, "horizonSlots"),
    ("PUT", "/slots/config", {"horizonSlots": 1001}, "horizonSlots"),
    ("PUT", "/slots/config", {"timeZone": "Europe/Berlin"}, "timeZone"),
    ("PUT", "/slots/config", [], "body"),
    ("PUT", f"/slots/{FIRST}", {}, "body"),
    ("PUT", f"/slots/{FIRST}", None, "body"),
    ("PUT", f"/slots/{FIRST}", {"capacity": -1}, "capacity"),
    ("PUT", f"/slots/{FIRST}", {"disabled": "yes"}, "disabled"),
    ("PUT", f"/slots/{FIRST}", {"load": 0}, "load"),
    ("PUT", "/slots/p1", {"disabled": True}, "slotId"),
    ("PUT", "/slots/slot:-900", {"disabled": True}, "slotId"),
    ("PUT", "/slots/slot:1234567890123", {"disabled": True}, "slotId"),
    ("POST", "/slots/assign", {"orderPrice": 1, "itemsCount": 1}, "orderId"),
    ("POST", "/slots/assign", request("a:b"), "orderId"),
    ("POST", "/slots/assign", request("x" * 65), "orderId"),
    ("POST", "/slots/assign", request(""), "orderId"),
    ("POST", "/slots/assign", request(price=-1), "orderPrice"),
    ("POST", "/slots/assign", request(price=0.001), "orderPrice"),
    ("POST", "/slots/assign", request(orderPrice={"$gt": 0}), "orderPrice"),
    ("POST", "/slots/assign", request(itemsCount=0), "itemsCount"),
    ("POST", "/slots/assign", request(itemsCount=1.5), "itemsCount"),
    ("POST", "/slots/assign", request(slot=FIRST), "slot"),
    ("DELETE", "/slots/assignments/a.b", None, "orderId"),
    ("GET", "/slots?limit=0", None, "limit"),
    ("GET", "/slots?limit=101", None, "limit"),
    ("GET", "/slots?cursor=nonsense", None, "cursor"),
    ("GET", "/slots?cursor=WyJwMSJd", None, "cursor"),
    ("GET", "/slots?from=yesterday", None, "from"),
    ("GET", "/slots?from=2026-06-01T10:00:00", None, "from"),
    ("GET", "/slots?to=2026-13-01T10:00:00Z", None, "to"),
    ("GET", "/slots?from=2026-06-01T10:00:00Z&to=2026-06-01T09:00:00Z", None, "to"),
    ("PUT", f"/products/{FIRST}", {"kind": "goods"}, "productId"),
    ("PUT", f"/inventory/{FIRST}", {"quantity": 5}, "productId"),
    ("POST", f"/inventory/{FIRST}/restock", {"quantity": 5}, "productId"),
]


async def test_what_is_invalid_says_which_field(http: httpx.AsyncClient, worker: Worker) -> None:
    for method, path, body, field in INVALID:
        answer = await http.request(method, path, **({"json": body} if method in ("PUT", "POST") else {}))

        assert answer.status_code == 422, (method, path, body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert field in [error["field"] for error in answer.json()["errors"]], (method, path, body, answer.text)
    assert (await http.get("/slots/config")).json() == DEFAULTS
    assert await worker.database["products"].count_documents({}) == 0
    assert await worker.database["reservations"].count_documents({}) == 0


async def test_slots_are_listed_within_the_horizon_and_within_any_times(http: httpx.AsyncClient) -> None:
    await http.put("/slots/config", json={"horizonSlots": 3, "capacity": 100})
    await assign(http)

    listed = (await http.get("/slots")).json()
    assert listed["nextCursor"] is None
    assert [slot["slotId"] for slot in listed["items"]] == [slot_id(NOW), FIRST, SECOND, THIRD]
    assert listed["items"][1] == {
        "slotId": FIRST,
        "start": "2026-06-01T10:15:00.000Z",
        "end": "2026-06-01T10:30:00.000Z",
        "capacity": 100,
        "load": 60,
        "disabled": False,
        "followsRules": True,
    }
    later = {"from": "2026-06-01T12:15:00+02:00", "to": "2026-06-01T11:00:00Z"}
    assert [slot["slotId"] for slot in (await http.get("/slots", params=later)).json()["items"]] == [
        FIRST,
        SECOND,
        THIRD,
    ]


async def test_slots_come_in_pages_recorded_or_not(http: httpx.AsyncClient) -> None:
    await http.put(f"/slots/{SECOND}", json={"disabled": True})
    await assign(http)
    span: dict[str, Any] = {"from": "2026-06-01T10:00:00Z", "to": "2026-06-01T11:16:00Z", "limit": 2}

    pages: list[list[str]] = []
    cursor: str | None = None
    while len(pages) < 9:
        page = (await http.get("/slots", params=span | ({"cursor": cursor} if cursor else {}))).json()
        pages.append([slot["slotId"] for slot in page["items"]])
        if (cursor := page["nextCursor"]) is None:
            break

    assert [slot for page in pages for slot in page] == [slot_id(NOW), FIRST, SECOND, THIRD, FOURTH, FIFTH]
    assert all(len(page) <= 2 for page in pages)


async def test_only_used_slots_of_the_past_are_listed(http: httpx.AsyncClient, clock: HandClock) -> None:
    await assign(http)
    clock.forward(days=1)

    listed = (await http.get("/slots", params={"from": "2026-06-01T00:00:00Z", "to": "2026-06-02T10:30:00Z"})).json()

    assert [slot["start"] for slot in listed["items"]] == [
        "2026-06-01T10:15:00.000Z",
        "2026-06-02T10:00:00.000Z",
        "2026-06-02T10:15:00.000Z",
    ]


async def test_a_slot_whose_times_cannot_be_booked_is_not_listed(http: httpx.AsyncClient) -> None:
    await http.put("/slots/config", json={"durationMinutes": 60})
    assert (await assign(http)).json()["slotStart"] == "2026-06-01T11:00:00.000Z"
    await http.put("/slots/config", json={"durationMinutes": 15})

    starts = [
        slot["start"][11:16]
        for slot in (await http.get("/slots", params={"from": "2026-06-01T11:20:00Z", "limit": 2})).json()["items"]
    ]
    assert starts == ["12:00", "12:15"]  # 11:00 to 12:00 is booked

    await http.delete("/slots/assignments/x1")
    await http.put("/slots/config", json={"openTime": "20:00"})
    listed = (await http.get("/slots", params={"limit": 2})).json()["items"]
    assert [slot["start"][11:16] for slot in listed] == ["20:00", "20:15"]


async def test_digits_of_other_scripts_are_not_slots(http: httpx.AsyncClient) -> None:
    foreign = f"slot:{FIRST[5:].translate(str.maketrans('0123456789', '٠١٢٣٤٥٦٧٨٩'))}"

    assert (await http.put(f"/slots/{foreign}", json={"disabled": True})).status_code == 422


async def test_a_rule_that_is_null_is_refused_by_its_name(http: httpx.AsyncClient) -> None:
    answer = await http.put("/slots/config", json={"capacity": None, "horizonSlots": 7})

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["capacity"]
    assert (await http.get("/slots/config")).json()["horizonSlots"] == 100


async def test_the_ends_of_the_calendar_are_handled(http: httpx.AsyncClient) -> None:
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z"):
        for parameter in ("from", "to"):
            answer = await http.get("/slots", params={parameter: moment, "limit": 1})
            assert answer.status_code in (200, 422), (parameter, moment)


async def test_one_slot_is_lowered_disabled_and_left_to_the_rules_again(http: httpx.AsyncClient) -> None:
    await assign(http)

    lowered = await http.put(f"/slots/{FIRST}", json={"capacity": 50.5})
    assert lowered.status_code == 200
    assert {name: lowered.json()[name] for name in ("slotId", "capacity", "load", "disabled", "followsRules")} == {
        "slotId": FIRST,
        "capacity": 50.5,
        "load": 60,
        "disabled": False,
        "followsRules": False,
    }
    assert (await assign(http)).json()["slotId"] == FIRST
    assert (await assign(http, "x2", 1)).json()["slotId"] == SECOND

    disabled = (await http.put(f"/slots/{FIRST}", json={"disabled": True})).json()
    assert (disabled["capacity"], disabled["disabled"]) == (50.5, True)
    again = (await http.put(f"/slots/{FIRST}", json={"capacity": None, "disabled": False})).json()
    assert (again["capacity"], again["load"], again["disabled"]) == (100000, 60, False)
    assert again["followsRules"] is True
    assert (await assign(http, "x3", 1)).json()["slotId"] == FIRST
    assert (await http.put("/slots/config", json={"capacity": 70})).status_code == 200
    assert [slot["capacity"] for slot in (await http.get("/slots?limit=2")).json()["items"]] == [70, 70]


async def test_an_unknown_slot_is_not_found(http: httpx.AsyncClient) -> None:
    for slot in ("slot:1", slot_id(NOW + timedelta(minutes=1)), "slot:999999999999"):
        answer = await http.put(f"/slots/{slot}", json={"disabled": True})

        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert slot in answer.json()["detail"]


async def test_slots_are_not_products(http: httpx.AsyncClient, worker: Worker) -> None:
    await http.put("/inventory/p", json={"quantity": 5})
    await assign(http)

    assert (await http.get(f"/products/{FIRST}")).status_code in (404, 422)
    assert (await http.get(f"/inventory/{FIRST}")).status_code in (404, 422)
    for path in ("/products", "/inventory"):
        assert [item["productId"] for item in (await http.get(path)).json()["items"]] == ["p"]
    answers = await worker.reserve(order("o", {"p": 1, FIRST: 1}), order("o2", {FIRST: 1}, slot=FIRST))
    assert answers == [
        StockReservationFailed(order_id=order_id, reason=f"Unknown product {FIRST}", code="unknown_product")
        for order_id in ("o", "o2")
    ]
    assert await loads(http) == {FIRST: 60}


async def test_an_order_is_assigned_the_earliest_slot_with_room_and_keeps_it(http: httpx.AsyncClient) -> None:
    await http.put("/slots/config", json={"capacity": 100, "leadMinutes": 20})

    answer = await assign(http)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "slotId": FIRST,
            "slotStart": "2026-06-01T10:15:00.000Z",
            "visibleAt": "2026-06-01T10:15:00.000Z",
            "orderPrice": 60,
        },
    )
    second = (await assign(http, "x2", 60)).json()
    assert (second["slotId"], second["visibleAt"]) == (SECOND, "2026-06-01T10:10:00.000Z")
    assert (await assign(http, "x3", 40)).json()["slotId"] == FIRST
    # A repeated request, even at another price, gets the same answer.
    assert (await assign(http, "x1", 99)).json() == answer.json()
    assert await loads(http) == {FIRST: 100, SECOND: 60}


async def test_when_all_are_full_the_answer_is_429_and_asking_again_may_help(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    await http.put("/slots/config", json={"capacity": 100, "horizonSlots": 2})
    await assign(http, "x1", 100)
    await assign(http, "x2", 60)

    full = "No delivery slot with room for 40.01 until 2026-06-01T10:45:00.000Z"
    assert_problem(await assign(http, "x3", 40.01), 429, full)
    assert_problem(await assign(http, "x4", 101), 429, f"{full.replace('40.01', '101')}: none takes more than 100")
    assert (await release(http, "x3")).status_code == 404
    assert await worker.database["reservations"].count_documents({}) == 2
    await release(http, "x1")
    assert (await assign(http, "x3", 40.01)).json()["slotId"] == FIRST


async def test_assignments_asked_for_together_are_each_answered(http: httpx.AsyncClient, worker: Worker) -> None:
    await http.put("/slots/config", json={"capacity": 100, "horizonSlots": 3})

    answers = await asyncio.gather(*(assign(http, f"x{n % 10}", 30) for n in range(20)))

    by_order: dict[int, set[str]] = {}
    for number, answer in enumerate(answers):
        by_order.setdefault(number % 10, set()).add(answer.text)
    assert all(len(said) == 1 for order_id, said in by_order.items() if order_id < 9)
    assert [answer.status_code for answer in answers].count(429) == 2
    assert await loads(http) == {FIRST: 90, SECOND: 90, THIRD: 90}


async def test_an_assignment_is_released_once_and_can_be_made_again(
    http: httpx.AsyncClient, worker: Worker, clock: HandClock
) -> None:
    assert (await release(http)).status_code == 404
    await assign(http)

    given_back = await release(http)
    assert (given_back.status_code, given_back.content) == (204, b"")
    assert (await release(http)).status_code == 204
    assert await loads(http) == {}

    for _ in range(2):
        assert (await assign(http, price=70)).json()["slotId"] == FIRST
        assert await loads(http) == {FIRST: 70}
        answers = await asyncio.gather(*(release(http) for _ in range(3)))
        assert {answer.status_code for answer in answers} == {204}
        assert await loads(http) == {}
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


async def test_an_order_of_this_shop_keeps_the_slot_of_its_own_reservation(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    await worker.stock({"p": 9})
    assert await worker.reserve(order("o", {"p": 1}, price=30, slot=SECOND)) == [
        StockReserved(order_id="o", slot=SECOND, slot_visible_at=STARTS[1])
    ]

    assigned = (await assign(http, "o", 50)).json()
    assert (assigned["slotId"], assigned["orderPrice"]) == (SECOND, 30)
    assert_problem(await release(http, "o"), 409, f"Order o has {SECOND} by its reservation: cancel the order")
    assert await loads(http) == {SECOND: 30}
    assert (await http.get("/reservations/o")).json()["slot"] == assigned

    await worker.release("o")
    assert_problem(await assign(http, "o"), 409, "Order o is over: its reservation is RELEASED")
    assert (await release(http, "o")).status_code == 404
    assert await loads(http) == {}


async def test_a_refused_order_of_this_shop_keeps_no_slot_and_gets_none(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    assert (await assign(http, "o")).status_code == 200

    await worker.reserve(order("o", {"nothing": 1}))

    assert await loads(http) == {}
    assert_problem(await assign(http, "o"), 409, "Order o is over: its reservation is FAILED")
    assert await loads(http) == {}


async def test_cancelling_an_order_of_this_shop_releases_its_assignment(
    http: httpx.AsyncClient, worker: Worker, clock: HandClock
) -> None:
    await worker.stock({"p": 9})
    await worker.reserve(order("o", {"p": 1}))
    assert (await assign(http, "o")).json()["slotId"] == FIRST
    assert await loads(http) == {FIRST: 60}

    assert await worker.release("o") == [StockReleased(order_id="o")]
    assert await worker.release("o") == [StockReleased(order_id="o")]

    assert await loads(http) == {}
    assert (await release(http, "o")).status_code == 204
    await settle_everything([worker], clock)
    assert await unsettled_records(worker.database) == []


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
async def test_no_hour_is_lost_or_doubled_when_clocks_are_changed(http: httpx.AsyncClient, clock: HandClock) -> None:
    """New York skips an hour at 07:00 UTC in the first of these nights and repeats one at 06:00 UTC in the other."""
    await http.put("/slots/config", json={"durationMinutes": 60, "openTime": "05:00", "closeTime": "09:00"})

    for day in (datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)):
        clock.now = day
        slots = (await http.get("/slots", params={"limit": 5})).json()["items"]
        assert [slot["start"][11:16] for slot in slots] == ["05:00", "06:00", "07:00", "08:00", "05:00"]
        assert [slot["end"][11:16] for slot in slots] == ["06:00", "07:00", "08:00", "09:00", "06:00"]
        assert slots[0]["slotId"] == f"slot:{int(day.timestamp()) + 5 * 3600}"


async def test_the_description_of_the_api_names_every_answer(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()

    assert {"SlotRulesView", "SlotPage", "AssignmentView"} <= described["components"]["schemas"].keys()
    assert {"/slots", "/slots/config", "/slots/{slot_id}", "/slots/assign", "/slots/assignments/{order_id}"} <= set(
        described["paths"]
    )


async def test_the_kitchen_sees_the_orders_of_a_slot_when_they_become_visible(
    http: httpx.AsyncClient, worker: Worker, clock: HandClock
) -> None:
    await worker.stock({"pizza": 9})
    await http.put("/slots/config", json={"leadMinutes": 30, "cutoffMinutes": 0})
    early, gone = order("early", {"pizza": 2}, price=10, slot=THIRD), order("gone", {"pizza": 1}, slot=THIRD)
    await worker.reserve(early, gone, order("elsewhere", {"pizza": 1}, slot=FOURTH))
    await worker.release("gone")

    async def listed(slot: str = THIRD, **parameters: Any) -> list[dict[str, Any]]:
        answer = await http.get(f"/slots/{slot}/orders", params=parameters)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    (booked,) = await listed()
    assert booked == {
        "orderId": "early",
        "status": "RESERVED",
        "items": [{"productId": "pizza", "quantity": 2, "price": 10}],
        "itemsCount": 2,
        "slotStart": STARTS[2].isoformat().replace("+00:00", ".000Z"),
        "visibleAt": (STARTS[2] - timedelta(minutes=30)).isoformat().replace("+00:00", ".000Z"),
        "orderPrice": 20,
    }
    assert await listed(visible="true") == []
    clock.now = STARTS[2] - timedelta(minutes=30)
    assert await listed(visible="true") == [booked]
    await worker.ship("early")
    assert [found["status"] for found in await listed()] == ["SHIPPED"]
    assert await listed(FIFTH) == []
    assert (await http.get("/slots/slot:x/orders")).status_code == 422


async def test_the_list_of_a_slot_has_pages_and_foreign_orders(http: httpx.AsyncClient, worker: Worker) -> None:
    await worker.stock({"pizza": 99})
    await worker.reserve(*(order(f"o{n}", {"pizza": 1}, slot=FIRST) for n in range(5)))
    await worker.assign("theirs", 100, items_count=3)
    seen, cursor = [], ""
    while True:
        page = (await http.get(f"/slots/{FIRST}/orders?limit=2{cursor}")).json()
        seen += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert sorted(found["orderId"] for found in seen) == [*(f"o{n}" for n in range(5)), "theirs"]
    (theirs,) = (found for found in seen if found["orderId"] == "theirs")
    assert (theirs["items"], theirs["itemsCount"]) == ([], 3)
