"""Records belong to owners: what one caller may see and change of the records of others, over all services."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from order_service import schema as order_schema
from order_service.placement import order_id_of
from payment_service import schema as payment_schema
from shared import audit_log
from shared.access.permissions import Role
from shared.database import Database
from shared.schema import prepare
from tests.support.access import ADMIN, RING, bearer
from tests.support.builders import connected, order_body
from tests.support.eventually import eventually
from tests.support.servers import Servers, empty_databases
from tests.support.shop import A_SERVER, Shop, open_shop

SHOP = bearer(RING.add(Role.CLIENT, "shop"))
RIVAL = bearer(RING.add(Role.CLIENT, "rival"))
ANNA = bearer(RING.add(Role.CUSTOMER, "shop", "anna"))
BEN = bearer(RING.add(Role.CUSTOMER, "shop", "ben"))
NAMESAKE = bearer(RING.add(Role.CUSTOMER, "rival", "anna"))
VIEWER = bearer(RING.add(Role.VIEWER, "host"))
BOOKS = bearer(RING.add(Role.ACCOUNTANT, "shop"))
RIVAL_BOOKS = bearer(RING.add(Role.ACCOUNTANT, "rival"))


@pytest.fixture(scope="module")
async def open_all_day(servers: Servers, module_prefix: str) -> AsyncIterator[Shop]:
    async with (
        open_shop(servers.mongodb_url, module_prefix) as opened,
        opened.all_running(),
    ):
        for product in ("p1", "vps"):
            kind = {"kind": "goods"} if product == "p1" else {"kind": "vps", "package": "103.181.91"}
            await opened.ask("inventory", "PUT", f"/products/{product}", kind | {"price": 10})
        yield opened


@pytest.fixture
async def shop(open_all_day: Shop, mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    """The one shop of all tests, with its products, and without the orders and accounts of the tests before."""
    yield open_all_day

    async def is_idle() -> bool:
        open_all_day.broker.advance(1)
        return not open_all_day.depth()

    await eventually(is_idle, 30, "all messages to be handled")
    for name in ("orders", "payments"):
        await empty_databases(mongodb_url, f"{database_prefix}_{name}")
    async with connected(mongodb_url, f"{database_prefix}_provisioning") as provisioning:
        await provisioning["jobs"].delete_many({})


@pytest.fixture
def database_prefix(module_prefix: str) -> str:
    return module_prefix


@pytest.fixture
async def provisioning(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_provisioning") as database:
        await prepare(database, {audit_log.COLLECTION: audit_log.SCHEMA})
        yield database


async def send(
    shop: Shop, caller: dict[str, str], method: str, service: str, path: str, body: Any = None, **headers: str
) -> httpx.Response:
    return await shop._clients[service].request(method, path, json=body, headers=caller | headers)


async def place(shop: Shop, caller: dict[str, str], user: str = "anna", **changes: Any) -> str:
    answer = await send(shop, caller, "POST", "order", "/orders", order_body(userId=user, **changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["orderId"])


async def test_another_owners_order_does_not_exist_anywhere(shop: Shop) -> None:
    order_id = await place(shop, SHOP, **A_SERVER)
    settled = await shop.settled(order_id)
    assert (settled["ownerId"], settled["status"]) == ("shop", "COMPLETED")

    paths = [
        ("GET", "order", f"/orders/{order_id}"),
        ("GET", "order", f"/orders/{order_id}/events"),
        ("POST", "order", f"/orders/{order_id}/cancel"),
        ("GET", "payment", f"/payments/{order_id}"),
        ("GET", "inventory", f"/reservations/{order_id}"),
        ("GET", "provisioning", f"/jobs/{order_id}"),
        ("GET", "provisioning", f"/jobs/{order_id}/credentials"),
    ]
    for method, service, path in paths:
        for stranger in (RIVAL, BEN, NAMESAKE):
            other = await send(shop, stranger, method, service, path)
            unknown = await send(shop, stranger, method, service, path.replace(order_id, "unknown"))
            assert (other.status_code, unknown.status_code) == (404, 404), (method, path, other.text)
            assert other.json()["detail"] == unknown.json()["detail"].replace("unknown", order_id)
        for own in (SHOP, ANNA):
            answer = await send(shop, own, method, service, path)
            assert answer.status_code in (200, 204, 409), (method, path, answer.text)
    credentials = f"/jobs/{order_id}/credentials"
    unexplained = await send(shop, ADMIN, "GET", "provisioning", credentials)
    assert unexplained.status_code == 422
    assert unexplained.json()["errors"][0]["field"] == "Ordersaga-Reason"
    explained = await send(shop, ADMIN, "GET", "provisioning", credentials, **{"Ordersaga-Reason": "ticket 4711"})
    assert explained.status_code == 200
    assert (await send(shop, VIEWER, "GET", "order", f"/orders/{order_id}")).status_code == 200
    assert (await send(shop, VIEWER, "GET", "provisioning", f"/jobs/{order_id}/credentials")).status_code == 403


async def test_credentials_that_cannot_be_recorded_as_read_are_not_shown(shop: Shop, provisioning: Database) -> None:
    order_id = await place(shop, SHOP, **A_SERVER)
    await shop.settled(order_id)
    path = f"/jobs/{order_id}/credentials"
    explained = ADMIN | {"Ordersaga-Reason": "ticket 4711"}
    await provisioning.command("collMod", "actions", validator={"_id": "nothing can be inserted"})
    for caller in (SHOP, explained):
        refused = await send(shop, caller, "GET", "provisioning", path)
        assert refused.status_code == 503, refused.text
        assert "cannot be recorded in the audit log" in refused.json()["detail"]
        assert "password" not in refused.text
    await provisioning.command("collMod", "actions", validator={})
    shown = await send(shop, explained, "GET", "provisioning", path)
    assert "password" in shown.text
    [entry] = await provisioning["actions"].find({"subject": order_id}).to_list()
    assert entry["why"] == "ticket 4711"


async def test_lists_show_only_what_the_caller_owns(shop: Shop) -> None:
    ids = {
        "anna": await place(shop, SHOP, "anna", payment={"token": "tok_declined"}),
        "ben": await place(shop, SHOP, "ben", **A_SERVER),
        "rival": await place(shop, RIVAL, "anna"),
    }
    for order_id in ids.values():
        await shop.settled(order_id)

    async def listed(caller: dict[str, str], service: str, path: str) -> set[str]:
        return {item["orderId"] for item in (await send(shop, caller, "GET", service, path)).json()["items"]}

    everything = set(ids.values())
    for service, path, of_all in (
        ("order", "/orders", everything),
        ("order", "/orders?userId=anna", {ids["anna"], ids["rival"]}),
        ("payment", "/payments", everything),
        ("provisioning", "/jobs", {ids["ben"]}),
    ):
        assert await listed(VIEWER, service, path) == of_all
        assert await listed(SHOP, service, path) == of_all - {ids["rival"]}
        assert await listed(RIVAL, service, path) == of_all & {ids["rival"]}
        assert await listed(ANNA, service, path) == of_all & {ids["anna"]}
    assert await listed(ANNA, "order", "/orders?userId=ben") == set()

    failures = {
        name: sum(
            item["count"] for item in (await send(shop, caller, "GET", "order", "/orders/failures")).json()["items"]
        )
        for name, caller in (("viewer", VIEWER), ("shop", SHOP), ("rival", RIVAL), ("ben", BEN))
    }
    assert failures == {"viewer": 1, "shop": 1, "rival": 0, "ben": 0}


async def test_a_customer_places_orders_for_itself_only(shop: Shop) -> None:
    answer = await send(shop, ANNA, "POST", "order", "/orders", order_body(userId="ben"))
    assert answer.status_code == 403
    assert answer.json()["detail"] == "You place orders for yourself only: userId is 'ben', yours is 'anna'"
    assert (await shop.settled(await place(shop, ANNA)))["userId"] == "anna"


async def test_the_owner_comes_from_the_caller_and_never_from_the_body(shop: Shop) -> None:
    answer = await send(shop, SHOP, "POST", "order", "/orders", order_body() | {"ownerId": "rival"})
    assert answer.status_code == 422
    answer = await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER | {"ownerId": "rival"})
    assert answer.status_code == 422


# --- Prices. ---


@pytest.mark.parametrize(("caller", "status"), [(SHOP, "CANCELLED"), (ANNA, "CANCELLED"), (ADMIN, "CONFIRMED")])
async def test_a_product_without_a_price_is_not_sold_at_the_price_that_the_client_names(
    shop: Shop, caller: dict[str, str], status: str
) -> None:
    await shop.ask("inventory", "PUT", "/inventory/gift", {"quantity": 5})
    gift: dict[str, Any] = {"items": [{"productId": "gift", "quantity": 5, "price": 0}], "totalAmount": 0}
    settled = await shop.settled(await place(shop, caller, "anna", **gift))
    assert settled["status"] == status
    if status == "CANCELLED":
        assert settled["failureReason"] == "No price is set for gift: it cannot be ordered"
    left = await shop.ask("inventory", "GET", "/inventory/gift")
    assert left["quantity"] == (0 if status == "CONFIRMED" else 5)


# --- Idempotency keys. ---


async def test_two_owners_may_use_the_same_idempotency_key(shop: Shop) -> None:
    async def placed(caller: dict[str, str]) -> str:
        answer = await send(shop, caller, "POST", "order", "/orders", order_body(), **{"Idempotency-Key": "monday"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["orderId"])

    own, rivals = await asyncio.gather(placed(SHOP), placed(RIVAL))
    assert own != rivals
    assert await placed(SHOP) == own
    assert await placed(RIVAL) == rivals


async def test_a_request_from_before_keys_had_owners_is_not_carried_out_twice(
    shop: Shop, mongodb_url: str, database_prefix: str
) -> None:
    """The order was placed without an owner, and its client repeats the request after the upgrade."""
    body = order_body(payment={"token": "tok_ok"})
    headers = {"Idempotency-Key": "before"}
    first = (await send(shop, ADMIN, "POST", "order", "/orders", body, **headers)).json()["orderId"]
    await shop.settled(first)
    async with connected(mongodb_url, f"{database_prefix}_orders") as stored:
        document = await stored["orders"].find_one_and_delete({"_id": first})
        assert document is not None
        former = order_id_of(None, "before")
        del document["ownerId"]
        await stored["orders"].insert_one(document | {"_id": former})

    async with shop.running("order"):  # as started after the upgrade
        repeated = await send(shop, SHOP, "POST", "order", "/orders", body, **headers)
        assert (repeated.status_code, repeated.json()["orderId"]) == (202, former)
        other = await send(shop, SHOP, "POST", "order", "/orders", order_body(userId="u2"), **headers)
        assert other.json()["orderId"] not in (first, former)


async def test_the_answers_of_the_funds_belong_to_an_owner_too(shop: Shop) -> None:
    headers = {"Idempotency-Key": "open"}
    first = await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER, **headers)
    again = await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER, **headers)
    other = await send(shop, RIVAL_BOOKS, "POST", "payment", "/api/retainers", RETAINER, **headers)
    assert first.json() == again.json()
    assert first.json()["retainer"]["_id"] != other.json()["retainer"]["_id"]
    assert other.json()["retainer"]["ownerId"] == "rival"


# --- Funds. ---

RETAINER = {"clientId": "anna", "retainerType": "prepaid", "initialAmount": 100}


async def test_an_order_is_paid_from_its_owners_retainer_only(shop: Shop) -> None:
    opened = await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER)
    retainer_id = opened.json()["retainer"]["_id"]
    payment = {"method": "retainer", "retainerId": retainer_id}

    theirs = await shop.settled(await place(shop, RIVAL, payment=payment))
    unknown = await shop.settled(await place(shop, RIVAL, payment=payment | {"retainerId": "r0"}))
    assert theirs["failureReason"] == unknown["failureReason"].replace("r0", retainer_id)
    assert theirs["failureReason"] == f"Retainer {retainer_id} does not exist"

    assert (await shop.settled(await place(shop, SHOP, payment=payment)))["status"] == "CONFIRMED"
    left = (await send(shop, BOOKS, "GET", "payment", f"/api/retainers/{retainer_id}")).json()["data"]
    assert left["currentBalance"] == 90


async def test_funds_of_others_do_not_exist(shop: Shop) -> None:
    retainer = (await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER)).json()["retainer"]
    invoice_body = {"clientId": "anna", "totalAmount": 10}
    invoice = (await send(shop, BOOKS, "POST", "payment", "/api/invoices", invoice_body)).json()["invoice"]
    payment_body = {"customerId": "anna", "amount": 10, "paymentMethod": "cash"}
    payment = (await send(shop, BOOKS, "POST", "payment", "/api/payments", payment_body)).json()["payment"]
    bank_body = {"name": "A", "accountNumber": "1", "bankName": "First", "currency": "USD", "balance": 10}
    bank = (await send(shop, BOOKS, "POST", "payment", "/api/bank-accounts", bank_body)).json()["account"]

    for kind, record in (("retainers", retainer), ("invoices", invoice), ("payments", payment)):
        for own in (SHOP, ANNA, VIEWER):
            assert (await send(shop, own, "GET", "payment", f"/api/{kind}/{record['_id']}")).status_code == 200
            assert len((await send(shop, own, "GET", "payment", f"/api/{kind}")).json()["items"]) == 1
        for stranger in (RIVAL, BEN, NAMESAKE):
            assert (await send(shop, stranger, "GET", "payment", f"/api/{kind}/{record['_id']}")).status_code == 404
            assert (await send(shop, stranger, "GET", "payment", f"/api/{kind}")).json()["items"] == []
    for outsider in (SHOP, RIVAL, ANNA):
        assert (await send(shop, outsider, "GET", "payment", f"/api/bank-accounts/{bank['_id']}")).status_code == 404
        assert (await send(shop, outsider, "GET", "payment", "/api/bank-accounts")).json()["items"] == []


async def test_the_ledger_shows_a_client_the_entries_of_its_own_accounts(shop: Shop) -> None:
    retainer = (await send(shop, BOOKS, "POST", "payment", "/api/retainers", RETAINER)).json()["retainer"]
    account = retainer["ledgerAccount"]

    async def entries(caller: dict[str, str], query: str) -> httpx.Response:
        return await send(shop, caller, "GET", "payment", f"/api/ledger{query}")

    assert len((await entries(SHOP, f"?account={account}")).json()["items"]) == 1
    assert len((await entries(VIEWER, "")).json()["items"]) == 1
    assert (await entries(SHOP, "")).status_code == 422
    other, unknown = await entries(RIVAL, f"?account={account}"), await entries(RIVAL, "?account=retainer:r0")
    assert (other.status_code, unknown.status_code) == (404, 404)
    assert other.json()["detail"] == unknown.json()["detail"].replace("retainer:r0", account)
    assert (await entries(SHOP, "?account=system:revenue:USD")).status_code == 404


# --- Slots. ---


async def test_a_slot_that_another_owners_order_has_is_neither_shown_nor_given_back(shop: Shop) -> None:
    asked = {"orderId": "a17", "orderPrice": 10, "itemsCount": 1}
    first = await send(shop, SHOP, "POST", "inventory", "/slots/assign", asked)
    assert first.status_code == 200, first.text
    assert (await send(shop, SHOP, "POST", "inventory", "/slots/assign", asked)).json() == first.json()

    assert (await send(shop, RIVAL, "POST", "inventory", "/slots/assign", asked)).status_code == 404
    assert (await send(shop, RIVAL, "DELETE", "inventory", "/slots/assignments/a17")).status_code == 404
    assert (await send(shop, ADMIN, "POST", "inventory", "/slots/assign", asked)).json() == first.json()
    assert (await send(shop, SHOP, "DELETE", "inventory", "/slots/assignments/a17")).status_code == 204


async def test_of_two_owners_that_ask_at_once_for_the_same_order_one_gets_the_slot(shop: Shop) -> None:
    asked = {"orderId": "a18", "orderPrice": 10, "itemsCount": 1}
    answers = await asyncio.gather(
        *(send(shop, caller, "POST", "inventory", "/slots/assign", asked) for caller in (SHOP, RIVAL) * 5)
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200] * 5 + [404] * 5
    assert len({tuple(statuses[owner::2]) for owner in (0, 1)}) == 2


# --- Cost. ---


async def test_lists_of_an_owner_read_no_records_of_others(shop: Shop, mongodb_url: str, database_prefix: str) -> None:
    for name, schema in (("orders", order_schema.SCHEMA), ("payments", payment_schema.SCHEMA)):
        async with connected(mongodb_url, f"{database_prefix}_{name}") as database:
            await prepare(database, schema)
    for caller in (SHOP, *[RIVAL] * 20):
        order_id = await place(shop, caller)
    await shop.settled(order_id)
    async with connected(mongodb_url, f"{database_prefix}_orders") as orders:
        query = {"status": {"$in": ["CONFIRMED", "PENDING", "CANCELLED", "FAILED"]}, "ownerId": "shop"}
        command = {"find": "orders", "filter": query, "sort": {"createdAt": -1, "_id": -1}, "limit": 51}
        explained = await orders.command({"explain": command, "verbosity": "executionStats"})
        assert explained["executionStats"]["totalDocsExamined"] <= 2
    async with connected(mongodb_url, f"{database_prefix}_payments") as payments:

        async def all_stored() -> bool:
            return await payments["payments"].count_documents({}) == 21

        await eventually(all_stored, 30, "all payments to be stored")
        command = {"find": "payments", "filter": {"ownerId": "shop"}, "sort": {"_id": 1}, "limit": 51}
        explained = await payments.command({"explain": command, "verbosity": "executionStats"})
        assert explained["executionStats"]["totalDocsExamined"] <= 2
