"""`ordersaga accounts trial-balance` and `income` agree with the books that the audit reads, for random books."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pytest

from operations.accounts.reports import Reports
from operations.audit.journal import Journal
from operations.audit.ledger import LedgerPass
from operations.reading.chart_of_accounts import side
from payment_service.ledger import journal_entries
from payment_service.ledger.journal_entries import JournalEntry
from tests.integration.test_accounts_command import document, run
from tests.support.seeds import seeded
from tests.support.world import Document, World, populate_funds

START = datetime(2026, 1, 1, tzinfo=UTC)
ENTRIES = 200


@pytest.fixture
async def world(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        yield World(client, database_prefix, mongodb_url, clean_broker)


def random_entry(chance: random.Random) -> JournalEntry:
    currency, amount = chance.choice(("USD", "EUR", "JPY")), chance.randint(1, 10**9)
    one, other = (f"{chance.randint(1, 9)}-{currency}" for _ in range(2))
    match chance.randint(1, 8):
        case 1:
            return journal_entries.retainer_opened(one, amount, currency)
        case 2:
            return journal_entries.retainer_consumed(one, amount, currency)
        case 3:
            return journal_entries.order_paid(one, "o", amount, currency)
        case 4:
            return journal_entries.order_part_refunded(one, "o", "r", amount, currency)
        case 5:
            return journal_entries.invoice_issued(one, amount, currency)
        case 6:
            return journal_entries.payment_completed("p", "c:with:colons", amount, currency)
        case 7:
            return journal_entries.bank_opened(one, amount, currency)
        case _:
            fee = chance.randint(0, 500)
            return journal_entries.transfer_made(
                "t", from_id=f"from-{one}", to_id=f"to-{other}", amount=amount, fee=fee, currency=currency
            )


def random_books(seed: int) -> Iterator[Document]:
    chance = random.Random(seed)
    for number in range(ENTRIES):
        entry = random_entry(chance)
        yield {
            "_id": f"e{number:03}",
            "at": START + timedelta(minutes=chance.randint(0, 1000)),
            "operation": entry.operation,
            "currency": entry.currency,
            "postings": [{"account": posting.account, "amount": posting.amount} for posting in entry.postings],
            "reference": {},
        }


def group_of(account: str) -> str:
    kind, _, rest = account.partition(":")
    return f"system:{rest.rpartition(':')[0]}" if kind == "system" else kind


@seeded(cost=15)
async def test_the_trial_balance_is_that_of_the_audits_books(world: World, seed: int) -> None:
    books = list(random_books(seed))
    await world.collection("entries").insert_many(books)
    found = await Reports(world.client, world.prefix).trial_balance()
    assert found.balances
    debits, credits_, numbers = Counter[Any](), Counter[Any](), Counter[Any]()
    async for balance in Journal(world.client, world.prefix).balances():
        key = balance.currency, group_of(balance.account_id)
        numbers[key] += 1
        (debits if balance.posted > 0 else credits_)[key] += abs(balance.posted)
    assert {(line.currency, line.group): tuple(line[2:]) for line in found.lines} == {
        key: (numbers[key], debits[key], credits_[key]) for key in numbers
    }
    audited = LedgerPass(Journal(world.client, world.prefix))
    async for _ in audited.violations():
        pass
    shown = {f"{line.group}:{line.currency}": line for line in found.lines if line.group.startswith("system:")}
    assert {name: side(name) * (line.debit - line.credit) for name, line in shown.items()} == audited.system_balances  # type: ignore[operator]


@seeded(cost=15)
async def test_the_income_of_two_periods_is_that_of_both_together(world: World, seed: int) -> None:
    books = list(random_books(seed))
    await world.collection("entries").insert_many(books)
    reports, middle = Reports(world.client, world.prefix), START + timedelta(minutes=500)
    sums: list[Counter[Any]] = []
    for periods in ([(None, None)], [(None, middle), (middle, None)]):
        counted = Counter[Any]()
        for since, until in periods:
            for line in (await reports.income(since, until)).lines:
                key = line.currency, line.operation
                counted.update({(*key, "n"): line.entries, (*key, "r"): line.revenue, (*key, "f"): line.fees})
        sums.append(counted)
    assert sums[0] == sums[1]
    expected = Counter[Any]()
    for entry in books:
        earning = {f"system:{name}:{entry['currency']}" for name in ("revenue", "bank-fees")}
        for posting in entry["postings"]:
            if posting["account"] in earning:
                expected[entry["currency"]] -= posting["amount"]
    totals = (await reports.income(None, None)).totals()
    assert {total.currency: total.net for total in totals} == dict(expected)


async def test_the_reports_are_shown_and_printed_as_json(world: World) -> None:
    assert "There are no entries." in await run(world, "trial-balance")
    populate_funds(world)
    await world.store()
    found = await document(world, "trial-balance")
    assert found["balances"] is True
    assert found["totals"] == {"USD": {"debit": 352, "credit": 352}}
    assert {line["group"]: (line["debit"], line["credit"]) for line in found["lines"]} == {
        "bank": (99.5, 0),
        "customer": (0, 4),
        "invoice": (0, 0),
        "retainer": (0, 188),
        "system:bank-fees": (0.5, 0),
        "system:clearing": (252, 0),
        "system:opening": (0, 100),
        "system:revenue": (0, 60),
    }
    assert await document(world, "income") == {
        "from": None,
        "to": None,
        "currencies": [
            {
                "currency": "USD",
                "revenue": 60,
                "fees": 0.5,
                "net": 59.5,
                "operations": [
                    {"operation": "invoice.issued", "entries": 1, "revenue": 50, "fees": 0, "net": 50},
                    {"operation": "retainer.consumed", "entries": 1, "revenue": 10, "fees": 0, "net": 10},
                    {"operation": "transfer.made", "entries": 1, "revenue": 0, "fees": 0.5, "net": -0.5},
                ],
            }
        ],
    }
    assert "59.50 USD" in await run(world, "income")
    assert "Nothing was earned" in await run(world, "income", "--to", "2020-01-01")
    assert "352.00 USD" in await run(world, "trial-balance")
    await run(world, "income", "--from", "2026-02-01", "--to", "2026-01-01", status=2)


async def test_books_that_do_not_balance_end_with_status_1(world: World) -> None:
    populate_funds(world)
    await world.store()
    await world.collection("entries").update_one({"_id": "e01"}, {"$inc": {"postings.0.amount": 1}})
    found = await document(world, "trial-balance", status=1)
    assert found["balances"] is False
    assert "ordersaga audit" in await run(world, "trial-balance", status=1)
