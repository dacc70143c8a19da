"""The products and reservations collections, over both drivers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inventory_service.stock import (
    MAX_UNITS,
    Description,
    Kind,
    Product,
    Reservation,
    ReservationLine,
    Status,
    clear_moves,
    take,
)
from inventory_service.stock_items import KindConflictError, RestockKeyReusedError, TooManyUnitsError
from shared.clock import utc_now
from shared.contracts.inventory import ServerSpecification
from tests.support.inventory_worker import Worker, inventory_database, order, settle_everything

VPS = Description(Kind.VPS, name="Small server", price=1999, package="103.181.9", package_id="17", ram=4)


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture(params=["pymongo", "motor", "memory"])
async def worker(mongodb_url: str, database_prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[Worker]:
    async with inventory_database(mongodb_url, database_prefix, request.param) as db:
        yield Worker(db)


async def read(worker: Worker, product_id: str = "p") -> Product:
    item = (await worker.stock_items.read([product_id]))[product_id]
    assert isinstance(item, Product)
    return item


async def document(worker: Worker, product_id: str = "p") -> Any:
    return await worker.database["products"].find_one({"_id": product_id})


async def test_a_description_is_set_and_replaced(worker: Worker) -> None:
    product, is_new = await worker.stock_items.put_product("v", VPS)
    assert is_new
    assert (product.kind, product.price, product.package, product.quantity) == (Kind.VPS, 1999, "103.181.9", None)

    product, is_new = await worker.stock_items.put_product("v", Description(Kind.VPS, package="other"))
    assert not is_new
    assert (product.name, product.price, product.package, product.ram) == (None, None, "other", None)
    assert product.created_at <= product.updated_at


async def test_a_new_description_keeps_the_stock_and_fails_writes_based_on_an_earlier_read(
    worker: Worker,
) -> None:
    await worker.stock_items.set_free("p", 5)
    before = await read(worker)

    product, is_new = await worker.stock_items.put_product("p", Description(Kind.GOODS, price=500))

    assert (is_new, product.quantity, product.price) == (False, 5, 500)
    assert await worker.stock_items.write([take(before, {"o": 1})]) == set()


@pytest.mark.parametrize("description", [VPS, Description(Kind.GOODS)])
async def test_a_product_keeps_its_kind(worker: Worker, description: Description) -> None:
    await worker.stock_items.put_product("p", description)
    other = VPS if description.kind is Kind.GOODS else Description(Kind.GOODS)

    with pytest.raises(KindConflictError):
        await worker.stock_items.put_product("p", other)


async def test_what_is_set_and_restocked_adds_up(worker: Worker) -> None:
    product, is_new = await worker.stock_items.set_free("p", 5)
    assert (is_new, product.kind, product.quantity, product.supplied) == (True, Kind.GOODS, 5, 5)
    await worker.stock_items.write([take(product, {"o": 2})])

    restocked, _ = await worker.stock_items.restock("p", 4) or pytest.fail("it is not known")
    assert (restocked.quantity, restocked.supplied, restocked.reserved) == (7, 9, 2)

    product, is_new = await worker.stock_items.set_free("p", 1)
    assert (is_new, product.quantity, product.supplied, product.reserved) == (False, 1, 3, 2)
    assert product.pending_moves == {"o": -2}


async def test_a_restock_with_a_key_adds_once(worker: Worker) -> None:
    await worker.stock_items.set_free("p", 3)

    at_once = await asyncio.gather(*(worker.stock_items.restock("p", 4, "k1") for _ in range(5)))
    assert sorted(restocked[1] for restocked in at_once if restocked is not None) == [False, True, True, True, True]
    assert (await read(worker)).quantity == 7
    with pytest.raises(RestockKeyReusedError):
        await worker.stock_items.restock("p", 5, "k1")
    other, done_before = await worker.stock_items.restock("p", 4, "k2") or pytest.fail("it is not known")
    assert (other.quantity, other.supplied, done_before) == (11, 11, False)

    # A repeat is answered although the product has no room for as many units any more.
    await worker.stock_items.set_free("p", MAX_UNITS)
    repeated, done_before = await worker.stock_items.restock("p", 4, "k1") or pytest.fail("it is not known")
    assert (repeated.quantity, done_before) == (MAX_UNITS, True)
    with pytest.raises(TooManyUnitsError):
        await worker.stock_items.restock("p", 4, "k3")


async def test_setting_and_restocking_fail_writes_based_on_an_earlier_read(worker: Worker) -> None:
    await worker.stock_items.set_free("p", 5)
    before = await read(worker)
    await worker.stock_items.restock("p", 1)
    assert await worker.stock_items.write([take(before, {"o": 1})]) == set()

    before = await read(worker)
    await worker.stock_items.set_free("p", 2)
    assert await worker.stock_items.write([take(before, {"o": 1})]) == set()
    assert (await read(worker)).quantity == 2


async def test_products_that_are_not_counted_have_no_quantity_to_set(worker: Worker) -> None:
    await worker.stock_items.put_product("v", VPS)

    with pytest.raises(KindConflictError):
        await worker.stock_items.set_free("v", 1)
    with pytest.raises(KindConflictError):
        await worker.stock_items.restock("v", 1)


async def test_restocking_is_for_known_products_and_has_a_limit(worker: Worker) -> None:
    assert await worker.stock_items.restock("p", 1) is None
    await worker.stock_items.set_free("p", MAX_UNITS - 1)

    assert await worker.stock_items.restock("p", 1) is not None
    with pytest.raises(TooManyUnitsError):
        await worker.stock_items.restock("p", 1)
    assert (await read(worker)).quantity == MAX_UNITS


async def test_a_new_product_set_by_many_at_once_is_one_product(worker: Worker) -> None:
    answers = await asyncio.gather(*(worker.stock_items.set_free("p", 5) for _ in range(20)))

    assert [is_new for _, is_new in answers].count(True) == 1
    product = await read(worker)
    assert (product.quantity, product.supplied) == (5, 5)


async def test_a_write_is_stored_only_over_the_version_it_was_read_at(worker: Worker) -> None:
    await worker.stock_items.set_free("p", 5)
    before = await read(worker)

    assert await worker.stock_items.write([take(before, {"o": 2})]) == {"p"}
    assert await worker.stock_items.write([take(before, {"x": 2})]) == set()

    stored = await read(worker)
    assert (stored.quantity, stored.pending_moves, stored.version) == (3, {"o": -2}, before.version + 1)
    assert await worker.database["products"].count_documents({}) == 1


async def test_writes_end_at_the_first_product_that_has_changed(worker: Worker) -> None:
    for product_id in ("a", "b", "c"):
        await worker.stock_items.set_free(product_id, 5)
    before = await worker.stock_items.read(["a", "b", "c"])
    await worker.stock_items.restock("b", 1)

    changed = [take(before[product_id], {"o": 1}) for product_id in ("c", "b", "a")]

    assert await worker.stock_items.write(changed) == {"a"}
    assert [(await read(worker, product_id)).quantity for product_id in ("a", "b", "c")] == [4, 6, 5]


async def test_products_are_found_by_how_long_moves_have_been_pending(worker: Worker) -> None:
    await worker.stock_items.set_free("p", 5)
    await worker.stock_items.write([take(await read(worker), {"o": 1})])
    since = (await read(worker)).pending_since
    assert since is not None
    await worker.stock_items.write([take(await read(worker), {"o2": 1})])

    found = await worker.stock_items.pending_since_before(since + timedelta(milliseconds=1))
    assert [product.id for product in found] == ["p"]
    assert await worker.stock_items.pending_since_before(since) == []

    await worker.stock_items.write([clear_moves(await read(worker), {"o": Status.RESERVED, "o2": Status.RESERVED})])
    assert await worker.stock_items.pending_since_before(since + timedelta(days=1)) == []
    assert "markedSince" not in await document(worker)


async def test_products_come_in_pages(worker: Worker) -> None:
    for product_id in ("b", "a", "c"):
        await worker.stock_items.set_free(product_id, 1)

    first = await worker.stock_items.product_page(after=None, limit=2)
    rest = await worker.stock_items.product_page(after="b", limit=2)

    assert [product.id for product in first + rest] == ["a", "b", "c"]


def a_reservation(order_id: str = "o", **changes: Any) -> Reservation:
    moment = utc_now()
    return replace(
        Reservation(
            order_id, Status.RESERVED, moment, moment, (ReservationLine("a", 2, 1999), ReservationLine("b", 1, 0))
        ),
        **changes,
    )


async def test_a_reservation_is_read_as_it_was_stored(worker: Worker) -> None:
    reservations = [
        a_reservation("goods"),
        a_reservation("vps", server=ServerSpecification(package="103.181.9", package_id="17", ram=4)),
        a_reservation("refused", status=Status.FAILED, failure_reason="Unknown product p9"),
        a_reservation("tombstone", status=Status.RELEASED, items=()),
    ]

    assert await worker.reservations.insert(reservations) == set()

    ids = [reservation.order_id for reservation in reservations]
    assert await worker.reservations.read([*ids, "unknown"]) == {r.order_id: r for r in reservations}
    assert await worker.reservations.decisions([*ids, "unknown"]) == {r.order_id: r.decision for r in reservations}


async def test_the_first_decision_about_an_order_stays(worker: Worker) -> None:
    first = a_reservation("o", status=Status.FAILED, failure_reason="Insufficient stock")
    await worker.reservations.insert([first])

    assert await worker.reservations.insert([a_reservation("o"), a_reservation("new")]) == {"o"}

    assert (await worker.reservations.read(["o"]))["o"] == first
    assert await worker.status("new") == Status.RESERVED


async def test_only_reserved_becomes_released(worker: Worker) -> None:
    old = datetime(2026, 1, 1, tzinfo=UTC)
    await worker.reservations.insert(
        [a_reservation("kept", updated_at=old), a_reservation("refused", status=Status.FAILED, updated_at=old)]
    )

    await worker.reservations.mark(["kept", "refused", "unknown"], Status.RELEASED)

    found = await worker.reservations.read(["kept", "refused", "unknown"])
    assert {order_id: r.status for order_id, r in found.items()} == {"kept": Status.RELEASED, "refused": Status.FAILED}
    assert found["kept"].updated_at > old
    assert found["refused"].updated_at == old


async def test_the_whole_path_of_an_order_works(worker: Worker) -> None:
    await worker.stock({"a": 3, "b": 3})

    await worker.reserve(order("1", {"a": 2, "b": 1}), order("2", {"a": 2}))
    await worker.release("1")

    await settle_everything([worker])
    assert (await worker.free("a"), await worker.free("b")) == (3, 3)
