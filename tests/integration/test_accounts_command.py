"""`ordersaga accounts` over a real ledger: its output, its repairs, and an audit that passes after them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pymongo
import pytest
from typer.testing import CliRunner

from operations.accounts.correction import Keep
from operations.accounts.repair import repair
from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from operations.commands.accounts import accounts
from operations.console import Executor
from operations.sign_in.person import Person
from payment_service.ledger import journal_entries
from payment_service.ledger.ledger import Ledger, references
from payment_service.ledger.transactions import Transactions
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.services import CONSOLE
from tests.support.commands import run_command
from tests.support.consoles import console_dependencies
from tests.support.world import LONG_AGO, Document, World, account, entry, populate_funds


@pytest.fixture
async def world(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        created = World(client, database_prefix, mongodb_url, clean_broker)
        populate_funds(created)
        await created.store()
        yield created


def environment(world: World) -> dict[str, str]:
    return {
        "ORDERSAGA_MONGODB_URL": world.mongodb_url,
        "ORDERSAGA_AMQP_URL": world.amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": world.prefix,
    }


async def run(world: World, *words: str, given: str | None = None, status: int = 0) -> str:
    """Run the command, check its exit status, and return its output."""
    runner = CliRunner(env=environment(world) | {"COLUMNS": "200"})
    result = await asyncio.to_thread(runner.invoke, accounts, list(words), input=given)
    assert result.exit_code == status, result.output
    return result.stdout


async def document(world: World, *words: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await run(world, *words, "--json", status=status))
    return found


async def stored(world: World, account_id: str) -> Document:
    found = await world.collection("accounts").find_one({"_id": account_id})
    assert found is not None
    return found


async def corrections(world: World) -> list[Document]:
    return await world.collection("entries").find({"operation": "correction"}).sort("at", 1).to_list()


async def set_balance(world: World, account_id: str, balance: Any) -> None:
    await world.collection("accounts").update_one({"_id": account_id}, {"$set": {"balance": balance}})


async def test_an_account_is_shown_with_the_sum_of_its_postings(world: World) -> None:
    shown = await document(world, "show", "invoice:i1")
    movements = shown.pop("movements")
    assert shown == {
        "account": "invoice:i1",
        "kind": "invoice",
        "status": "active",
        "clientId": "c1",
        "totalAmount": 50,
        "currency": "USD",
        "balance": 0,
        "postingsBalance": 0,
        "postings": 4,
        "agrees": True,
    }
    assert [(m["operation"], m["amount"], m["balance"]) for m in movements] == [
        ("invoice.issued", 50, 50),
        ("retainer.consumed", -5, 45),
        ("invoice.paid", -15, 30),
        ("payment.completed", -30, 0),
    ]
    text = await run(world, "show", "invoice:i1")
    assert "50.00 USD" in text
    assert "payment.completed" in text


async def test_the_balance_of_a_system_account_is_the_sum_of_its_postings(world: World) -> None:
    shown = await document(world, "show", "system:clearing:USD")
    assert (shown["balance"], shown["postingsBalance"], shown["agrees"]) == (None, 252, True)
    assert "252.00 USD" in await run(world, "show", "system:clearing:USD")


async def test_an_unknown_account_is_reported(world: World) -> None:
    for command in ("show", "statement", "repair"):
        assert await document(world, command, "retainer:nobody", status=1) == {
            "account": "retainer:nobody",
            "found": False,
        }
        assert await run(world, command, "retainer:nobody", status=1) == ""


async def test_a_statement_adds_up(world: World) -> None:
    whole = await document(world, "statement", "retainer:r1")
    assert (whole["openingBalance"], whole["closingBalance"], whole["earlier"]) == (0, 188, False)
    assert [(m["amount"], m["balance"]) for m in whole["movements"]] == [(200, 200), (-10, 190), (-5, 185), (3, 188)]

    newest = await document(world, "statement", "retainer:r1", "--limit", "2")
    assert (newest["openingBalance"], newest["earlier"]) == (190, True)
    assert newest["movements"] == whole["movements"][2:]

    second, last = (whole["movements"][index]["at"] for index in (1, 3))
    between = await document(world, "statement", "retainer:r1", "--from", second, "--to", last)
    assert (between["openingBalance"], between["closingBalance"]) == (200, 185)
    assert between["movements"] == whole["movements"][1:3]

    before = await document(world, "statement", "retainer:r1", "--to", "2020-01-01")
    assert (before["openingBalance"], before["closingBalance"], before["movements"]) == (0, 0, [])
    text = await run(world, "statement", "retainer:r1")
    assert "balance before: 0.00 USD" in text
    assert "balance after: 188.00 USD" in text


async def test_a_statement_follows_the_accounts_versions_if_clocks_disagree(world: World) -> None:
    """The second posting was made by a process whose clock is ahead."""
    await world.collection("entries").update_one({"_id": "e03"}, {"$set": {"at": utc_now()}})
    whole = await document(world, "statement", "retainer:r1")
    assert [m["balance"] for m in whole["movements"]] == [200, 190, 185, 188]


async def test_nothing_to_repair(world: World) -> None:
    assert (await document(world, "repair", "--all"))["differences"] == []
    assert (await document(world, "repair", "retainer:r1", "--write", "--reason", "just in case"))["differences"] == []
    assert "every balance equals the sum of its postings" in await run(world, "repair", "--all")
    assert await corrections(world) == []


async def test_a_difference_is_shown_and_only_written_on_request(world: World) -> None:
    await set_balance(world, "retainer:r1", 18801)
    await set_balance(world, "bank:b1", 5000)
    before = [d async for d in world.collection("accounts").find()]
    shown = await document(world, "show", "retainer:r1", status=1)
    assert (shown["balance"], shown["postingsBalance"], shown["agrees"]) == (188.01, 188, False)
    found = await document(world, "repair", "--all", status=1)
    assert found["written"] is False
    assert [(d["account"], d["balance"], d["postingsBalance"]) for d in found["differences"]] == [
        ("bank:b1", 50, 59.5),
        ("retainer:r1", 188.01, 188),
    ]
    text = await run(world, "repair", "retainer:r1", status=1)
    assert "the balance is 188.01 USD, the sum of 4 postings is 188.00 USD" in text
    assert "Nothing was written" in text
    assert "bank:b1" not in text
    assert [d async for d in world.collection("accounts").find()] == before
    assert await corrections(world) == []


@pytest.mark.parametrize(("account_id", "balance", "right"), [("retainer:r1", 18801, 18800), ("bank:b1", 5000, 5950)])
async def test_the_balance_becomes_the_sum_of_its_postings(
    account_id: str, balance: int, right: int, world: World
) -> None:
    """The missing movement is posted and reversed; suspense stays at zero."""
    await set_balance(world, account_id, balance)
    assert not (await world.audit()).ok
    done = await document(world, "repair", account_id, "--write", "--reason", "edited by hand")
    assert done["written"] is True
    assert (await stored(world, account_id))["balance"] == right
    recorded, undone = await corrections(world)
    assert done["differences"][0]["entries"] == [recorded["_id"], undone["_id"]]
    assert undone["reverses"] == recorded["_id"]
    assert [entry["description"] for entry in (recorded, undone)] == ["edited by hand"] * 2
    assert [entry["postings"][0]["balanceAfter"] for entry in (recorded, undone)] == [balance, right]
    assert recorded["postings"][0]["account"] == account_id
    shown = await document(world, "statement", account_id, "--limit", "2")
    assert [m["balance"] for m in shown["movements"]] == [balance / 100, right / 100]
    report = await world.audit()
    assert report.violations == []
    assert report.information["systemBalances"]["system:suspense:USD"] == 0


@pytest.mark.parametrize(
    ("lost", "account_id", "balance", "suspense"),
    [("e03", "retainer:r1", 18800, -1000), ("e09", "bank:b1", 5950, -10000)],
)
async def test_the_balance_is_kept_if_it_is_right(
    lost: str, account_id: str, balance: int, suspense: int, world: World
) -> None:
    """An entry is missing: its movement is posted against suspense."""
    await world.collection("entries").delete_one({"_id": lost})
    assert "1 more posting was counted" in await run(world, "repair", account_id, status=1)
    await run(world, "repair", account_id, "--write", "--reason", "entry lost", "--keep", "balance")
    assert (await stored(world, account_id))["balance"] == balance
    (recorded,) = await corrections(world)
    assert recorded["postings"][1] == {"account": "system:suspense:USD", "amount": suspense}
    report = await world.audit()
    assert report.violations == []
    assert report.information["systemBalances"]["system:suspense:USD"] == -suspense / 100


async def test_the_ledger_works_after_a_repair(world: World) -> None:
    """The ledger accepts the entries of a repair, and posts after them."""
    await set_balance(world, "retainer:r1", 99)
    await run(world, "repair", "--all", "--write", "--reason", "edited by hand")
    database = world.collection("entries").database
    ledger = Ledger(database, utc_now)
    entry = journal_entries.retainer_consumed("r1", 18800, "USD")
    await Transactions(database).run("consume", lambda unit: ledger.post(entry, unit))
    after = await stored(world, "retainer:r1")
    assert (after["balance"], after["version"]) == (0, 7)
    whole = await document(world, "statement", "retainer:r1")
    assert [m["operation"] for m in whole["movements"][-3:]] == ["correction", "correction", "retainer.consumed"]
    assert (await world.audit()).violations == []


async def test_a_repair_needs_a_reason(world: World) -> None:
    await set_balance(world, "retainer:r1", 1)
    await run(world, "repair", "retainer:r1", "--write", given="counted again\n")
    assert [entry["description"] for entry in await corrections(world)] == ["counted again"] * 2


async def test_wrong_usage(world: World) -> None:
    await set_balance(world, "retainer:r1", 1)
    wrong = [
        ("repair",),
        ("repair", "retainer:r1", "--all"),
        ("repair", "--all", "--reason", "why"),
        ("repair", "--all", "--write", "--reason", " "),
        ("repair", "--all", "--write", "--json"),
        ("repair", "--all", "--keep", "nothing"),
        ("statement", "retainer:r1", "--from", "yesterday"),
        ("statement", "retainer:r1", "--limit", "0"),
        ("show",),
    ]
    for words in wrong:
        assert await run(world, *words, status=2) == ""
    assert await corrections(world) == []


async def test_an_impossible_correction_is_reported(world: World) -> None:
    await set_balance(world, "bank:b1", "many")
    await world.collection("accounts").delete_one({"_id": "bank:b2"})
    await world.collection("entries").delete_one({"_id": "e01"})  # the retainer's postings add up to less than zero
    found = await document(world, "repair", "--all", "--write", "--reason", "try", status=1)
    refused = {d["account"]: d["refused"] for d in found["differences"]}
    assert refused.keys() == {"bank:b1", "bank:b2", "retainer:r1"}
    assert "is not a number" in refused["bank:b1"]
    assert "document is missing" in refused["bank:b2"]
    assert "a balance must not be negative" in refused["retainer:r1"]
    assert await corrections(world) == []
    assert await run(world, "show", "bank:b1", status=1)
    assert await run(world, "show", "bank:b2", status=1)


async def test_two_repairs_at_once_correct_once(world: World) -> None:
    await set_balance(world, "retainer:r1", 1)
    repairs = [repair(world.client, world.prefix, "retainer:r1", Keep.POSTINGS, "twice") for _ in range(4)]
    done = await asyncio.gather(*repairs)
    assert sum(found is not None for found in done) == 1
    assert len(await corrections(world)) == 2
    assert (await world.audit()).violations == []


async def test_a_repair_while_others_post_loses_nothing(world: World) -> None:
    """Postings and repair change the same document: one of them starts again with the other's result."""
    await set_balance(world, "retainer:r1", 20000)
    database = world.collection("entries").database
    ledger, transactions = Ledger(database, utc_now), Transactions(database, limit_seconds=120)
    entry = journal_entries.retainer_consumed("r1", 100, "USD")
    touches = references(["retainer:r1"])
    consumed = [transactions.run("consume", lambda unit: ledger.post(entry, unit), touches) for _ in range(10)]
    await asyncio.gather(*consumed, repair(world.client, world.prefix, "retainer:r1", Keep.POSTINGS, "meanwhile"))
    assert (await stored(world, "retainer:r1"))["balance"] == 18800 - 1000
    assert (await world.audit()).violations == []


async def test_an_account_without_postings_is_not_a_difference(world: World) -> None:
    assert (await document(world, "show", "bank:b3"))["agrees"] is True
    await set_balance(world, "bank:b3", 7)
    await run(world, "repair", "bank:b3", "--write", "--reason", "never opened with anything")
    assert (await stored(world, "bank:b3"))["balance"] == 0
    assert (await world.audit()).violations == []


async def test_brackets_in_names_are_not_markup(world: World) -> None:
    account(world, "bank:odd", name="[red]Savings[/red]")
    world.records["entries"] = []
    entry(world, "odd", "bank.opened", ("bank:odd", 1), ("system:opening:USD", -1), bankAccountId="[bold]x")
    await world.store()
    text = await run(world, "show", "bank:odd")
    assert "[red]Savings[/red]" in text
    assert "[bold]x" in text
    assert str(LONG_AGO.year) in text


async def test_an_unreachable_server_is_exit_status_3(world: World) -> None:
    given = environment(world) | {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/"}
    words = ("accounts", "show", "retainer:r1")
    status, _, errors = await run_command(*words, environment=given)
    assert status == 3
    assert "MongoDB" in errors


async def test_a_repair_may_need_a_second_person(world: World) -> None:
    await set_balance(world, "invoice:i1", 1)
    operations = world.client[CONSOLE.database_in(world.prefix)]
    records = ApprovalRecords(operations)
    await records.publish(ApprovalPolicy(None, frozenset({"accounts.repair"})))
    await run(world, "repair", "invoice:i1", status=1)
    assert await records.newest(1) == []
    await run(world, "repair", "invoice:i1", "--write", "--reason", "a test", status=1)
    (asked,) = await records.newest(2)
    assert (asked["subject"], asked["why"]) == ("invoice:i1", "a test")
    assert await corrections(world) == []

    accountant = Person("carl", "carl", frozenset({Role.ADMIN}))
    await records.decide(asked["_id"], accountant, approve=True)
    async with console_dependencies(world.mongodb_url, world.amqp_url, world.prefix) as dependencies:
        assert await Executor(dependencies).work()
    (done,) = await records.newest(1)
    assert (done["status"], done["outcome"]) == ("done", "1 corrected")
    assert len(await corrections(world)) == 2, "two postings of one correction"


async def test_records_without_an_owner_are_given_to_one_and_others_keep_theirs(world: World) -> None:
    accounts_, payments = world.collection("accounts"), world.collection("fund_payments")
    await accounts_.update_one({"_id": "invoice:i1"}, {"$set": {"ownerId": "another-shop"}})
    before = await document(world, "show", "retainer:r1")
    asked = await run(world, "assign", "--owner", "my-shop", "--client", "c1", given="n\n", status=1)
    assert "belong" not in asked
    assert (await stored(world, "retainer:r1")).get("ownerId") is None
    outcome = (await document(world, "assign", "--owner", "my-shop", "--client", "c1", "--why", "moved", "--yes"))[
        "assigned"
    ]
    assert outcome["retainers"] == await accounts_.count_documents({"kind": "retainer", "ownerId": "my-shop"}) > 0
    assert outcome["payments"] == await payments.count_documents({"ownerId": "my-shop"}) > 0
    assert (await stored(world, "invoice:i1"))["ownerId"] == "another-shop"
    assert await accounts_.count_documents({"kind": "bank", "ownerId": {"$exists": True}}) == 0
    assert await document(world, "show", "retainer:r1") == before | {"ownerId": "my-shop"}
    [logged] = await world.client[f"{world.prefix}_operations"]["actions"].find({"action": "accounts.assign"}).to_list()
    assert (logged["why"], logged["subject"]) == ("moved", "c1")
    assert await run(world, "assign", "--owner", "thief", "--client", "c1", "--yes", status=1) == ""
    assert (await stored(world, "retainer:r1"))["ownerId"] == "my-shop"


@pytest.mark.parametrize(
    "words",
    [[], ["--all", "--client", "c1"], ["--all", "--json"], ["--all", "--owner", "a\nb"], ["--all", "--owner", ""]],
)
async def test_assigning_wrongly_changes_nothing(world: World, words: list[str]) -> None:
    await run(world, "assign", "--owner", "my-shop", *words, status=2)
    assert await world.collection("accounts").count_documents({"ownerId": {"$exists": True}}) == 0
