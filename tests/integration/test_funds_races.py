"""Funds under concurrent requests: over one process, and over two that share only the database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.support import funds_client as calls
from tests.support.builders import new_id
from tests.support.funds_app import FundsApp, assert_books_balance, funds_app
from tests.support.funds_client import Answer, Call

pytestmark = pytest.mark.both_databases

Processes = list[FundsApp]


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
async def processes(mongodb_url: str, database_prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[Processes]:
    async with funds_app(mongodb_url, database_prefix) as first, funds_app(mongodb_url, database_prefix) as second:
        yield [first, second][: request.param]
        await assert_books_balance(first)


async def at_once(processes: Processes, requests: list[Call], key: str | None = None) -> list[Answer]:
    """Send all requests concurrently, over the processes in turn."""
    clients = [process.client for process in processes]
    return await asyncio.gather(
        *(clients[number % len(clients)].send(call, key) for number, call in enumerate(requests))
    )


def statuses(answers: list[Answer]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


async def test_of_ten_consumptions_of_800_from_1000_one_succeeds(processes: Processes) -> None:
    client = processes[0].client
    retainer = await client.made(calls.open_retainer("c1", 100_000), "retainer")
    answers = await at_once(processes, [calls.consume(retainer, 80_000)] * 10)
    assert statuses(answers) == {200: 1, 400: 9}
    for refused in (answer for answer in answers if answer.status == 400):
        assert "200 USD" in refused.body["detail"]
        assert "800 USD" in refused.body["detail"]
    assert await client.retainer_balance(retainer) == 20_000


async def test_of_ten_completions_of_one_payment_one_succeeds(processes: Processes) -> None:
    client = processes[0].client
    customer = new_id()
    payment = await client.made(calls.create_payment(customer, 5_000), "payment")
    answers = await at_once(processes, [calls.complete(payment)] * 10)
    assert statuses(answers) == {200: 1, 400: 9}
    ledger = await client.get(f"/api/ledger?account=customer:{customer}:USD")
    assert [entry["operation"] for entry in ledger["items"]] == ["payment.completed"]
    assert ledger["items"][0]["postings"][1] == {
        "account": f"customer:{customer}:USD",
        "amount": -50,
        "balanceAfter": 50,
    }


async def test_of_ten_transfers_of_800_from_1000_one_succeeds(processes: Processes) -> None:
    client = processes[0].client
    sender = await client.made(calls.open_bank_account("a", 100_000), "account")
    receiver = await client.made(calls.open_bank_account("b", 0), "account")
    answers = await at_once(processes, [calls.transfer(sender, receiver, 80_000)] * 10)
    assert statuses(answers) == {201: 1, 400: 9}
    assert (await client.bank_balance(sender), await client.bank_balance(receiver)) == (20_000, 80_000)


async def test_of_ten_cancellations_one_succeeds(processes: Processes) -> None:
    client = processes[0].client
    sender = await client.made(calls.open_bank_account("a", 1_000), "account")
    receiver = await client.made(calls.open_bank_account("b", 0), "account")
    transfer = await client.made(calls.transfer(sender, receiver, 500, fee=1.5), "transfer")
    assert statuses(await at_once(processes, [calls.cancel(transfer)] * 10)) == {200: 1, 400: 9}
    assert (await client.bank_balance(sender), await client.bank_balance(receiver)) == (1_000, 0)


async def test_an_invoice_is_never_overpaid_from_three_sides_at_once(processes: Processes) -> None:
    client = processes[0].client
    retainer = await client.made(calls.open_retainer("c1", 100_000), "retainer")
    invoice = await client.made(calls.issue_invoice("c1", 1_000), "invoice")
    payments = [await client.made(calls.create_payment("c1", 400, invoiceId=invoice), "payment") for _ in range(4)]
    answers = await at_once(
        processes,
        [
            *(calls.complete(payment) for payment in payments),
            *[calls.pay_invoice(invoice, 400)] * 4,
            *[calls.consume(retainer, 400, invoiceId=invoice)] * 4,
        ],
    )
    assert statuses(answers) == {200: 2, 400: 10}
    shown = (await client.get(f"/api/invoices/{invoice}"))["invoice"]
    assert (shown["balanceDue"], shown["amountPaid"], shown["status"]) == (2, 8, "partially_paid")


async def test_concurrent_transfers_in_both_directions_all_succeed(processes: Processes) -> None:
    client = processes[0].client
    first, second = [await client.made(calls.open_bank_account(name, 10_000), "account") for name in "ab"]
    there, back = calls.transfer(first, second, 100), calls.transfer(second, first, 100)
    answers = await at_once(processes, [there, there, back, back] * 10)
    assert statuses(answers) == {201: 40}
    assert (await client.bank_balance(first), await client.bank_balance(second)) == (10_000, 10_000)


async def test_a_customers_first_payments_complete_at_once(processes: Processes) -> None:
    customer = new_id()
    requests = [calls.create_payment(customer, 100, status="completed")] * 10
    assert statuses(await at_once(processes, requests)) == {201: 10}
    account = await processes[0].database["accounts"].find_one({"_id": f"customer:{customer}:USD"})
    assert account is not None
    assert (account["balance"], account["version"]) == (1_000, 10)


async def test_a_credit_is_not_moved_to_retainers_twice(processes: Processes) -> None:
    client, customer = processes[0].client, new_id()
    payment = await client.made(calls.create_payment(customer, 1_000, status="completed"), "payment")
    retainers = [await client.made(calls.open_retainer(customer, 0), "retainer") for _ in range(4)]
    answers = await at_once(
        processes, [calls.replenish(retainer, 1_000, paymentId=payment) for retainer in retainers * 2]
    )
    assert statuses(answers) == {200: 1, 400: 7}


async def test_200_clients_of_one_retainer_all_get_true_answers(processes: Processes) -> None:
    """Half of what is asked for is there, and every request comes twice under its key."""
    client = processes[0].client
    retainer = await client.made(calls.open_retainer("c1", 50 * 100), "retainer")
    keys = [new_id() for _ in range(100)]
    clients = [process.client for process in processes]
    answers = await asyncio.gather(
        *(
            clients[place % len(clients)].send(calls.consume(retainer, 100), key)
            for place, key in enumerate(keys + keys[1:] + keys[:1])
        )
    )
    assert statuses(answers) == {200: 100, 400: 100}
    by_key: dict[str, set[str]] = {}
    for key, answer in zip(keys + keys[1:] + keys[:1], answers, strict=True):
        by_key.setdefault(key, set()).add(str(answer.said))
    assert all(len(said) == 1 for said in by_key.values()), "a repeat has another answer"
    granted = [answer.body["retainer"]["currentBalance"] for answer in answers if answer.succeeded]
    assert sorted(granted) == sorted([*range(50)] * 2), "each took from the balance that the one before it left"
    assert await client.retainer_balance(retainer) == 0
    consumed = {"operation": "retainer.consumed", "reference.retainerId": retainer}
    assert await processes[0].database["entries"].count_documents(consumed) == 50


async def test_twenty_same_requests_under_one_key_have_one_effect_and_one_answer(processes: Processes) -> None:
    client = processes[0].client
    retainer = await client.made(calls.open_retainer("c1", 100_000), "retainer")
    answers = await at_once(processes, [calls.consume(retainer, 1_000)] * 20, key=new_id())
    assert answers == [answers[0]] * 20
    assert answers[0].status == 200
    assert await client.retainer_balance(retainer) == 99_000


async def test_twenty_same_requests_under_one_key_create_one_thing(processes: Processes) -> None:
    answers = await at_once(processes, [calls.open_retainer(new_id(), 100_000)] * 20, key=new_id())
    assert answers == [answers[0]] * 20
    assert answers[0].status == 201


async def test_refused_and_granted_under_one_key_never_mix(processes: Processes) -> None:
    """While the balance changes, the first answer of a key may be either; all later ones are the same."""
    client = processes[0].client
    retainer = await client.made(calls.open_retainer("c1", 0), "retainer")
    key = new_id()
    *answers, _ = await asyncio.gather(
        *(process.client.send(calls.consume(retainer, 1_000), key) for process in processes * 10),
        client.send(calls.replenish(retainer, 1_000)),
    )
    assert [answer.said for answer in answers] == [answers[0].said] * len(answers)
    assert await client.retainer_balance(retainer) == (0 if answers[0].status == 200 else 1_000)
