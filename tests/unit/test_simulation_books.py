"""The judges of the simulation: each finds what was changed by hand in the books of a run without faults."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared.database import Document
from simulation import books, plan, world
from simulation.books import Books, News
from simulation.people import PromisedRefund, Shop
from simulation.provider import ProviderSite


@dataclass(frozen=True)
class Closed:
    """The books at the end of a run, and what the clients and the provider know."""

    books: Books
    shop: Shop
    site: ProviderSite
    now: datetime
    published: set[tuple[str, str]]

    def judged(self, **changed: Any) -> list[str]:
        return books.judge(replace(self.books, **changed), self.shop, self.site, self.now, News(self.published))

    def one(self, **wanted: Any) -> Document:
        """Return the first order with these fields."""
        orders = self.books.orders.values()
        return next(each for each in orders if all(each.get(name) == value for name, value in wanted.items()))


@pytest.fixture(scope="module")
def run() -> Closed:
    """Run ten orders without any fault."""
    seen: list[Closed] = []
    judge = books.judge

    def noting(found: Books, shop: Shop, site: ProviderSite, now: datetime, news: News) -> list[str]:
        seen.append(Closed(found, shop, site, now, set(news.published)))
        return judge(found, shop, site, now, news)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(books, "judge", noting)
        assert world.run(replace(plan.draw(SEED), faults=())).violations == ()
    return seen[0]


SEED = 16
"""Its orders are paid by card and from the retainer, some have a slot, a server or a refund, and some are cancelled."""


@pytest.fixture
def closed(run: Closed) -> Closed:
    """Return a copy, which a test may change."""
    site = ProviderSite(run.site.injector, run.site.trace)
    site.state.purchases.extend(run.site.state.purchases)
    site.sold_wrongly |= run.site.sold_wrongly
    return Closed(run.books, copy.deepcopy(run.shop), site, run.now, set(run.published))


def changed(records: Mapping[str, Document], key: str, **fields: Any) -> dict[str, Document]:
    """Return the records, one of them with other fields."""
    return {**records, key: {**records[key], **fields}}


def without(records: Mapping[str, Document], key: str) -> dict[str, Document]:
    return {other: record for other, record in records.items() if other != key}


def of_kind(found: list[str], kind: str) -> Iterator[str]:
    return (each for each in found if each.startswith(kind))


def has(found: list[str], kind: str, about: str = "") -> bool:
    return any(about in each for each in of_kind(found, kind))


def test_the_books_of_an_undisturbed_run_balance(closed: Closed) -> None:
    assert closed.judged() == []


def test_an_accepted_order_that_does_not_exist_is_lost(closed: Closed) -> None:
    key = closed.one(status="CANCELLED")["_id"]
    assert has(closed.judged(orders=without(closed.books.orders, key)), "lost", key)


def test_an_order_that_nobody_was_told_of_is_found_although_the_number_is_right(closed: Closed) -> None:
    gone = closed.one(status="CANCELLED")
    orders = {**without(closed.books.orders, gone["_id"]), "another": {**gone, "_id": "another"}}
    found = closed.judged(orders=orders)
    assert has(found, "lost", gone["_id"])
    assert has(found, "doubled", "another")


def test_two_orders_accepted_under_one_id_are_mixed_up(closed: Closed) -> None:
    first, second = sorted(closed.shop.accepted)[:2]
    closed.shop.accepted[second] = closed.shop.accepted[first]
    assert has(closed.judged(), "mixed up")


@pytest.mark.parametrize(
    "fields", [{"userId": "somebody"}, {"totalAmount": 1}, {"items": []}, {"delivery": {"slot": "slot:1"}}], ids=str
)
def test_an_order_holds_what_was_asked_for(closed: Closed, fields: dict[str, Any]) -> None:
    key = closed.one(status="CONFIRMED")["_id"]
    assert has(closed.judged(orders=changed(closed.books.orders, key, **fields)), "changed", key)


def test_a_request_that_was_accepted_takes_effect(closed: Closed) -> None:
    key = closed.one(status="CONFIRMED", server=None)["_id"]
    for kind in ("cancel", "deliver"):
        closed.shop.ended[key] = {kind}
        assert has(closed.judged(), f"forgotten: {kind}", key)


def test_a_promised_refund_is_recorded_with_its_amount(closed: Closed) -> None:
    order = next(order for order in closed.books.orders.values() if order.get("refunds"))
    for refunds in ([], [{**order["refunds"][0], "amount": 1}]):
        found = closed.judged(orders=changed(closed.books.orders, order["_id"], refunds=refunds))
        assert has(found, "refunds", order["refunds"][0]["refundId"])


def test_a_refund_that_nobody_was_told_of_is_found(closed: Closed) -> None:
    order = next(order for order in closed.books.orders.values() if order.get("refunds"))
    closed.shop.refunds[order["_id"]].popitem()
    assert has(closed.judged(), "refunds", "nobody was told of")
    closed.shop.doubtful_refunds[order["_id"]].add("its key")
    assert closed.judged() == []


def test_two_requests_for_refunds_are_two_refunds(closed: Closed) -> None:
    order = next(order for order in closed.books.orders.values() if order.get("refunds"))
    refund = order["refunds"][0]
    closed.shop.refunds[order["_id"]]["another key"] = PromisedRefund(refund["refundId"], refund["amount"])
    assert has(closed.judged(), "refunds", "one id")


def test_a_card_that_was_charged_for_nothing_or_not_charged_is_found(closed: Closed) -> None:
    paid = next(key for key in closed.books.charges if closed.books.orders[key]["status"] in books.GONE_THROUGH)
    assert has(closed.judged(charges=without(closed.books.charges, paid)), "charge", paid)
    refused = closed.one(status="CANCELLED")["_id"]
    charge = {**closed.books.charges[paid], "_id": refused}
    assert has(closed.judged(charges={**closed.books.charges, refused: charge}), "charge", refused)


def test_a_retainer_that_was_charged_otherwise_is_found(closed: Closed) -> None:
    key = f"retainer:{closed.shop.retainer_id}"
    accounts = changed(closed.books.accounts, key, balance=closed.books.accounts[key]["balance"] - 100)
    assert has(closed.judged(accounts=accounts), "retainer")


def test_an_entry_that_two_others_reverse_is_found(closed: Closed) -> None:
    first, second, third = sorted(closed.books.entries)[:3]
    entries = changed(closed.books.entries, second, reverses=first)
    assert has(closed.judged(entries=changed(entries, third, reverses=first)), "invariant 5, reversed twice")


def test_units_that_are_gone_are_missed(closed: Closed) -> None:
    products = changed(closed.books.products, "p1", quantity=closed.books.products["p1"]["quantity"] - 1)
    assert has(closed.judged(products=products), "stock", "p1")
    assert has(closed.judged(products=without(closed.books.products, "p1")), "stock", "p1")


def test_a_slot_with_more_than_its_orders_or_its_room_is_found(closed: Closed) -> None:
    key = next(key for key, each in closed.books.products.items() if each.get("kind") == "slot")
    slot = closed.books.products[key]
    assert has(closed.judged(products=changed(closed.books.products, key, quantity=slot["quantity"] - 1)), "slots", key)
    overbooked = closed.judged(products=changed(closed.books.products, key, quantity=-1))
    assert has(overbooked, "invariant 1, overbooked", key)


def test_a_server_that_was_bought_twice_is_found(closed: Closed) -> None:
    closed.site.sell("198.51.100.12", None, wrong_ip=False)
    assert has(closed.judged(), "servers", "198.51.100.12")


def test_only_the_provider_says_which_sale_was_wrong(closed: Closed) -> None:
    ip = closed.site.sell("103.181.91.12", None, wrong_ip=True)
    assert closed.judged() == []
    closed.site.sold_wrongly.clear()
    address = {**next(iter(closed.books.addresses.values())), "_id": ip, "wrong": True}
    assert has(closed.judged(addresses={**closed.books.addresses, ip: address}), "servers", ip)


def test_a_server_of_two_orders_and_an_order_with_two_servers_are_found(closed: Closed) -> None:
    owner = next(order for order in closed.books.orders.values() if order.get("server"))
    other = closed.one(status="COMPLETED", server=None)["_id"]
    orders = changed(closed.books.orders, other, server=owner["server"])
    assert has(closed.judged(orders=orders), "invariant 6, shared address", owner["server"]["ip"])
    second = {**closed.books.addresses[owner["server"]["ip"]], "_id": "103.181.91.12"}
    found = closed.judged(addresses={**closed.books.addresses, "103.181.91.12": second})
    assert has(found, "invariant 6, two servers", owner["_id"])


def test_an_order_whose_end_nobody_was_told_is_found(closed: Closed) -> None:
    key = closed.one(status="CONFIRMED")["_id"]
    closed.published.remove(("order.confirmed", key))
    assert has(closed.judged(), "news", key)


def test_an_order_that_was_announced_as_what_it_is_not_is_found(closed: Closed) -> None:
    key = closed.one(status="CONFIRMED")["_id"]
    closed.published.add(("order.cancelled", key))
    assert has(closed.judged(), "news", f"{key} is CONFIRMED, and order.cancelled was published")


def test_news_that_the_broker_has_lost_are_not_missed(closed: Closed) -> None:
    lost = News(set(), is_complete=False)
    assert books.judge(closed.books, closed.shop, closed.site, closed.now, lost) == []


def test_an_address_that_is_sold_or_being_bought_must_not_be_asked_for(closed: Closed) -> None:
    free, sold = "103.181.91.11", "103.181.91.12"
    closed.site.begin_sale(free)
    closed.site.end_sale(free)
    closed.site.begin_sale(free)
    assert closed.site.defects == []
    closed.site.begin_sale(free)
    closed.site.sell(sold, None, wrong_ip=True)
    closed.site.begin_sale(closed.site.state.purchases[-1].ip)
    assert [defect.split()[1] for defect in closed.site.defects] == [free, closed.site.state.purchases[-1].ip]


def test_a_job_that_two_workers_have_done_is_found(closed: Closed) -> None:
    key, job = next((key, job) for key, job in closed.books.jobs.items() if job["state"] == "COMPLETED")
    again = [*job["attempts"], job["attempts"][-1]]
    assert has(closed.judged(jobs=changed(closed.books.jobs, key, attempts=again)), "twice", key)


def test_a_hold_that_two_orders_have_taken_is_found(closed: Closed) -> None:
    one, other, *_ = (key for key in closed.books.reservations if ":" not in key)
    used = {"usedHold": {"holdId": "h1", "outcome": "TAKEN"}}
    reservations = changed(changed(closed.books.reservations, one, **used), other, **used)
    assert has(closed.judged(reservations=reservations), "twice", "h1")


def test_what_is_overdue_is_found_by_the_audits_judges(closed: Closed) -> None:
    key = closed.one(status="CONFIRMED")["_id"]
    orders = changed(closed.books.orders, key, unpublished=True, updatedAt=closed.now - timedelta(hours=1))
    assert has(closed.judged(orders=orders), "invariant 7", key)
