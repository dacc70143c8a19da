"""Units of work: what is read, what is undone, and that a group has the outcome of its operations one by one."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.funds.bank import Bank
from payment_service.funds.invoices import Invoices
from payment_service.funds.payments import FundPayments
from payment_service.funds.retainers import Retainers
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.unit_of_work import Document, Reference, UnitOfWork
from shared.clock import utc_now
from shared.memory_database import MemoryDatabase

Work = Callable[[UnitOfWork], Awaitable[Document]]


class Store:
    """Documents in memory, and a list of what was read."""

    def __init__(self, *documents: Document) -> None:
        self.documents = {Reference(document["in"], document["_id"]): document for document in documents}
        self.reads: list[tuple[str, list[str]]] = []

    async def read(self, collection: str, ids: Collection[str]) -> Iterable[Document]:
        self.reads.append((collection, list(ids)))
        found = (self.documents.get(Reference(collection, each)) for each in ids)
        return [document for document in found if document is not None]

    def write(self, unit: UnitOfWork) -> None:
        for collection, changes in unit.changes().items():
            for update in changes.updated:
                reference = Reference(collection, update.before["_id"])
                assert self.documents[reference] == update.before
                self.documents[reference] = update.after
            for document in changes.inserted:
                assert Reference(collection, document["_id"]) not in self.documents
                self.documents[Reference(collection, document["_id"])] = document


def counter(name: str, count: int = 0) -> Document:
    return {"_id": name, "in": "counters", "count": count}


async def test_documents_are_read_together_and_once() -> None:
    store = Store(counter("a"))
    unit = UnitOfWork(store.read)
    await unit.load([Reference("counters", "a"), Reference("counters", "b"), Reference("counters", "a")])
    assert await unit.get("counters", "a") == counter("a")
    assert await unit.get("counters", "b") is None
    assert await unit.get("others", "c") is None
    assert store.reads == [("counters", ["a", "b"]), ("others", ["c"])]


async def test_changes_are_seen_and_written_in_one_step() -> None:
    unit = UnitOfWork(Store(counter("a")).read)
    await unit.get("counters", "a")
    unit.update("counters", counter("a", 1))
    unit.update("counters", counter("a", 2))
    unit.insert("before", {"_id": "new"})
    unit.update("before", {"_id": "new", "more": 1})
    assert await unit.get("counters", "a") == counter("a", 2)
    changes = unit.changes()
    assert list(changes) == ["counters", "before"], "what others contend for comes first"
    assert [(update.before, update.after) for update in changes["counters"].updated] == [
        (counter("a"), counter("a", 2))
    ]
    assert changes["before"].inserted == [{"_id": "new", "more": 1}]


async def test_a_change_to_the_same_is_not_written() -> None:
    unit = UnitOfWork(Store(counter("a")).read)
    await unit.get("counters", "a")
    unit.update("counters", counter("a"))
    assert unit.changes() == {}


async def test_what_is_rolled_back_is_not_written() -> None:
    unit = UnitOfWork(Store(counter("a"), counter("b")).read)
    await unit.load([Reference("counters", "a"), Reference("counters", "b")])
    unit.update("counters", counter("a", 1))
    savepoint = unit.savepoint()
    unit.update("counters", counter("a", 2))
    unit.update("counters", counter("b", 2))
    unit.insert("others", {"_id": "new"})
    unit.roll_back(savepoint)
    assert [update.after for update in unit.changes()["counters"].updated] == [counter("a", 1)]
    assert list(unit.changes()) == ["counters"]
    assert await unit.get("others", "new") is None


async def test_an_insert_and_an_update_know_their_document() -> None:
    unit = UnitOfWork(Store(counter("a")).read)
    with pytest.raises(LookupError):
        unit.update("counters", counter("a", 1))
    await unit.get("counters", "a")
    with pytest.raises(ValueError, match="already"):
        unit.insert("counters", counter("a", 1))


# --- A group of operations on funds. ---


@dataclass(frozen=True)
class Funds:
    """The operations on funds, over units of work only."""

    retainers: Retainers
    invoices: Invoices
    bank: Bank


def funds() -> Funds:
    database = MemoryDatabase("test_payments", clock=utc_now).connected().as_database()
    ledger = Ledger(database, utc_now)
    return Funds(Retainers(ledger, FundPayments(database, ledger, utc_now)), Invoices(ledger), Bank(database, ledger))


FUNDS = funds()
AMOUNTS = st.integers(1, 12)
RETAINERS, INVOICES, BANKS = (st.sampled_from([f"{kind}{number}" for number in range(2)]) for kind in "rib")


def _consume(retainer: str, amount: int, invoice: str | None) -> Work:
    return lambda unit: FUNDS.retainers.consume(unit, retainer, amount=amount, invoice_id=invoice)


def _replenish(retainer: str, amount: int) -> Work:
    return lambda unit: FUNDS.retainers.replenish(unit, retainer, amount=amount)


def _pay(invoice: str, amount: int) -> Work:
    return lambda unit: FUNDS.invoices.pay(unit, invoice, amount=amount, payment_method="cash")


def _transfer(source: str, target: str, amount: int) -> Work:
    return lambda unit: FUNDS.bank.transfer(unit, from_id=source, to_id=target, amount=amount, fee=1)


def _switch(retainer: str, status: str) -> Work:
    return lambda unit: FUNDS.retainers.set_status(unit, retainer, status)


OPERATIONS = st.one_of(
    st.builds(_consume, RETAINERS, AMOUNTS, st.none() | INVOICES),
    st.builds(_replenish, RETAINERS, AMOUNTS),
    st.builds(_pay, INVOICES, AMOUNTS),
    st.builds(_transfer, st.just("b0"), st.just("b1"), AMOUNTS)
    | st.builds(_transfer, st.just("b1"), st.just("b0"), AMOUNTS),
    st.builds(_switch, RETAINERS, st.sampled_from(["active", "inactive"])),
)


async def opened() -> Store:
    """Return a store with two retainers, invoices and bank accounts of 10 minor units each."""
    store, unit = Store(), UnitOfWork(Store().read)
    for number in range(2):
        await FUNDS.retainers.open(unit, client_id="c1", retainer_type="prepaid", amount=10, currency="USD")
        await FUNDS.invoices.issue(unit, client_id="c1", amount=10, currency="USD")
        await FUNDS.bank.open(unit, name="n", account_number="1", bank_name="b", currency="USD", balance=10)
        for document in unit.changes()["accounts"].inserted[-3:]:
            account = f"{document['kind']}:{document['kind'][0]}{number}"
            store.documents[Reference("accounts", account)] = document | {"_id": account}
    return store


async def outcome(work: Work, unit: UnitOfWork) -> Any:
    """Run one operation of a group, as Transactions does."""
    savepoint = unit.savepoint()
    try:
        return shown(await work(unit))
    except LedgerRefusalError as refusal:
        unit.roll_back(savepoint)
        return type(refusal), refusal.detail


def shown(document: Document) -> Document:
    """Return what does not differ between two runs: no times, no new ids."""
    varying = {"createdAt", "updatedAt", "at", "entryId", "reference", "_id"}
    return {name: value for name, value in document.items() if name not in varying}


def contents(store: Store) -> list[tuple[str, str, str]]:
    named = {"accounts"}
    return sorted(
        (collection, name if collection in named else "", repr(shown(document)))
        for (collection, name), document in store.documents.items()
    )


async def run(works: list[Work], store: Store, sizes: list[int]) -> list[Any]:
    """Run the operations in groups of these sizes, the rest in one."""
    outcomes = []
    for size in (*sizes, len(works)):
        unit = UnitOfWork(store.read)
        outcomes += [await outcome(work, unit) for work in works[:size]]
        store.write(unit)
        works = works[size:]
    return outcomes


@given(st.lists(OPERATIONS, min_size=1, max_size=20), st.lists(st.integers(1, 6), max_size=4))
def test_a_group_has_the_outcome_of_its_operations_one_after_the_other(works: list[Work], sizes: list[int]) -> None:
    async def compare() -> None:
        apart, together = await opened(), await opened()
        expected = await run(works, apart, [1] * len(works))
        assert await run(works, together, sizes) == expected
        assert contents(together) == contents(apart)

    asyncio.run(compare())
