"""The funds API against its contract: its answers, its refusals, and that refused requests change nothing."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support import funds_client as calls
from tests.support.access import OWNER
from tests.support.builders import new_id
from tests.support.funds_app import FundsApp, assert_books_balance, funds_app
from tests.support.funds_client import Answer, Call, Funds, read_books

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
async def app(mongodb_url: str, database_prefix: str) -> AsyncIterator[FundsApp]:
    async with funds_app(mongodb_url, database_prefix) as app:
        yield app
        await assert_books_balance(app)


@pytest.fixture
def client(app: FundsApp) -> Funds:
    return app.client


async def refused(app: FundsApp, call: Call, status: int, *said: str) -> Answer:
    """Send a request that must be refused with these words in the detail, and that must not change the books."""
    before = await read_books(app.database)
    response = await app.http.request(call.method, call.path, json=call.body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    for words in said:
        assert words in body["detail"]
    after = await read_books(app.database)
    assert (after.accounts, after.entries) == (before.accounts, before.entries)
    assert (after.payments, after.transfers) == (before.payments, before.transfers)
    return Answer(status, body)


# --- Retainers. ---


async def test_a_retainer_reads_as_the_contract_says(client: Funds) -> None:
    body = {"clientId": "c1", "retainerType": "hourly", "initialAmount": 1000.5}
    answer = await client.send(Call("/api/retainers", body))
    assert answer.status == 201
    retainer = answer.body["retainer"]
    assert TIME.fullmatch(retainer.pop("createdAt"))
    assert TIME.fullmatch(retainer.pop("updatedAt"))
    assert retainer == {
        "_id": retainer["_id"],
        "ownerId": OWNER,
        "clientId": "c1",
        "retainerType": "hourly",
        "currency": "USD",
        "currentBalance": 1000.5,
        "status": "active",
        "ledgerAccount": f"retainer:{retainer['_id']}",
    }


async def test_a_retainer_lists_its_consumptions_and_deposits(client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 10_000), "retainer")
    await client.send(calls.consume(retainer, 2_550, description="June"))
    await client.send(calls.consume(retainer, 1_000))
    assert (await client.send(calls.replenish(retainer, 500, paymentId="wire-7"))).status == 200
    data = (await client.get(f"/api/retainers/{retainer}"))["data"]
    assert data["currentBalance"] == 69.5
    assert [(m["amount"], m["balanceAfter"], m["description"]) for m in data["consumptions"]] == [
        (10, 64.5, None),
        (25.5, 74.5, "June"),
    ]
    assert [(m["operation"], m["amount"], m["reference"].get("paymentId")) for m in data["deposits"]] == [
        ("retainer.replenished", 5, "wire-7"),
        ("retainer.opened", 100, None),
    ]


async def test_a_retainer_may_start_empty(client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 0), "retainer")
    data = (await client.get(f"/api/retainers/{retainer}"))["data"]
    assert (data["currentBalance"], data["consumptions"], data["deposits"]) == (0, [], [])


async def test_consuming_more_than_the_balance_is_refused_with_balance_and_amount(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 10_000), "retainer")
    await refused(app, calls.consume(retainer, 10_001), 400, "Insufficient balance", "100 USD", "100.01 USD")
    assert (await client.send(calls.consume(retainer, 10_000))).body["retainer"]["currentBalance"] == 0


async def test_an_inactive_retainer_is_frozen_until_it_is_active_again(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 10_000), "retainer")
    assert (await client.send(calls.set_retainer_status(retainer, "inactive"))).body["retainer"]["status"] == "inactive"
    await refused(app, calls.consume(retainer, 1), 409, "is inactive")
    await refused(app, calls.replenish(retainer, 1), 409, "is inactive")
    await client.send(calls.set_retainer_status(retainer, "active"))
    assert (await client.send(calls.consume(retainer, 1))).status == 200


async def test_consumption_may_pay_an_invoice_but_no_more_than_is_due(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 10_000), "retainer")
    invoice = await client.made(calls.issue_invoice("c1", 3_000), "invoice")
    assert (await client.send(calls.consume(retainer, 2_000, invoiceId=invoice))).status == 200
    assert (await client.get(f"/api/invoices/{invoice}"))["invoice"]["balanceDue"] == 10
    overpayment = calls.consume(retainer, 1_001, invoiceId=invoice)
    await refused(app, overpayment, 400, "Overpayment", "10 USD", "10.01 USD")
    await refused(app, calls.consume(retainer, 1, invoiceId="nobody"), 404, "Invoice nobody")


async def test_credit_of_a_payment_moves_to_its_clients_retainer(app: FundsApp, client: Funds) -> None:
    customer = new_id()
    retainer = await client.made(calls.open_retainer(customer, 0), "retainer")
    payment = await client.made(calls.create_payment(customer, 1_000), "payment")
    from_payment = calls.replenish(retainer, 700, paymentId=payment)
    await refused(app, from_payment, 409, "is pending")
    await client.send(calls.complete(payment))
    assert (await client.send(from_payment)).body["retainer"]["currentBalance"] == 7
    await refused(app, from_payment, 400, "Insufficient balance", "3 USD", "7 USD")


async def test_a_payment_that_gave_the_client_no_credit_replenishes_nothing(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 0), "retainer")
    another = await client.made(calls.create_payment("c2", 1_000, status="completed"), "payment")
    answer = await refused(app, calls.replenish(retainer, 1, paymentId=another), 422, "client c1")
    assert answer.body["errors"][0]["field"] == "paymentId"
    invoice = await client.made(calls.issue_invoice("c1", 1_000), "invoice")
    spent = calls.create_payment("c1", 1_000, status="completed", invoiceId=invoice)
    await refused(app, calls.replenish(retainer, 1, paymentId=await client.made(spent, "payment")), 409, invoice)
    euros = await client.made(calls.create_payment("c1", 1_000, status="completed", currency="EUR"), "payment")
    await refused(app, calls.replenish(retainer, 1, paymentId=euros), 422, "EUR")


# --- Invoices. ---


async def test_an_invoice_is_paid_in_parts_and_never_overpaid(app: FundsApp, client: Funds) -> None:
    invoice = await client.made(calls.issue_invoice("c1", 10_000), "invoice")
    shown = (await client.get(f"/api/invoices/{invoice}"))["invoice"]
    assert (shown["totalAmount"], shown["balanceDue"], shown["amountPaid"], shown["status"]) == (100, 100, 0, "open")
    part = (await client.send(calls.pay_invoice(invoice, 2_510))).body["invoice"]
    assert (part["balanceDue"], part["amountPaid"], part["status"]) == (74.9, 25.1, "partially_paid")
    await refused(app, calls.pay_invoice(invoice, 7_491), 400, "Overpayment", "74.9 USD", "74.91 USD")
    rest = await client.send(calls.pay_invoice(invoice, 7_490))
    assert (rest.status, rest.body["invoice"]["status"], rest.body["invoice"]["balanceDue"]) == (200, "paid", 0)
    await refused(app, calls.pay_invoice(invoice, 1), 400, "Overpayment")


# --- Payments. ---


async def test_a_payment_is_pending_until_it_is_completed_once(app: FundsApp, client: Funds) -> None:
    payment = (await client.send(calls.create_payment("c1", 1_999))).body["payment"]
    assert (payment["status"], payment["amount"], payment["entryId"]) == ("pending", 19.99, None)
    completed = await client.send(calls.complete(payment["_id"]))
    assert (completed.status, completed.body["payment"]["status"]) == (200, "completed")
    assert (await client.get(f"/api/payments/{payment['_id']}")) == completed.body
    await refused(app, calls.complete(payment["_id"]), 400, "already completed")


async def test_a_payment_of_an_invoice_pays_it_when_it_is_completed(app: FundsApp, client: Funds) -> None:
    invoice = await client.made(calls.issue_invoice("c1", 1_000, currency="EUR"), "invoice")
    payments = [await client.made(calls.create_payment("c1", 600, invoiceId=invoice), "payment") for _ in range(2)]
    assert (await client.get(f"/api/invoices/{invoice}"))["invoice"]["balanceDue"] == 10
    assert (await client.send(calls.complete(payments[0]))).body["payment"]["currency"] == "EUR"
    assert (await client.get(f"/api/invoices/{invoice}"))["invoice"]["balanceDue"] == 4
    await refused(app, calls.complete(payments[1]), 400, "Overpayment", "4 EUR", "6 EUR")
    await refused(app, calls.create_payment("c1", 1, invoiceId="nobody"), 404, "nobody")


async def test_a_payment_may_be_completed_at_once(app: FundsApp, client: Funds) -> None:
    invoice = await client.made(calls.issue_invoice("c1", 1_000), "invoice")
    at_once = calls.create_payment("c1", 1_000, invoiceId=invoice, status="completed")
    answer = await client.send(at_once)
    assert (answer.status, answer.body["payment"]["status"]) == (201, "completed")
    assert (await client.get(f"/api/invoices/{invoice}"))["invoice"]["status"] == "paid"
    await refused(app, at_once, 400, "Overpayment")


# --- Bank accounts and transfers. ---


async def test_a_transfer_moves_the_amount_and_costs_the_sender_the_fee(app: FundsApp, client: Funds) -> None:
    sender = await client.made(calls.open_bank_account("a", 10_000), "account")
    receiver = await client.made(calls.open_bank_account("b", 0), "account")
    too_much = calls.transfer(sender, receiver, 10_000, fee=0.01)
    await refused(app, too_much, 400, "Insufficient balance", "100 USD", "100.01 USD")
    answer = await client.send(calls.transfer(sender, receiver, 9_000, fee=1, description="rent"))
    assert answer.status == 201
    transfer = answer.body["transfer"]
    assert (transfer["amount"], transfer["fee"], transfer["status"]) == (90, 1, "completed")
    assert (await client.bank_balance(sender), await client.bank_balance(receiver)) == (900, 9_000)
    fees = await client.get("/api/ledger?account=system:bank-fees:USD")
    assert [posting["amount"] for posting in fees["items"][0]["postings"]] == [90, 1, -91]


async def test_a_transfer_is_cancelled_once_fee_included(app: FundsApp, client: Funds) -> None:
    sender = await client.made(calls.open_bank_account("a", 1_000), "account")
    receiver = await client.made(calls.open_bank_account("b", 0), "account")
    transfer = await client.made(calls.transfer(sender, receiver, 500, fee=1), "transfer")
    answer = await client.send(Call(f"/api/bank-transfers/{transfer}/cancel", {"reason": "wrong account"}))
    cancelled = answer.body["transfer"]
    assert (answer.status, cancelled["status"], cancelled["reason"]) == (200, "cancelled", "wrong account")
    assert (await client.bank_balance(sender), await client.bank_balance(receiver)) == (1_000, 0)
    assert (await client.get(f"/api/bank-transfers/{transfer}")) == answer.body
    newest, first, *_ = (await client.get("/api/ledger"))["items"]
    assert (newest["operation"], newest["reverses"]) == ("transfer.cancelled", first["_id"])
    await refused(app, calls.cancel(transfer), 400, "already cancelled")


async def test_a_transfer_can_be_cancelled_without_a_body(app: FundsApp, client: Funds) -> None:
    sender = await client.made(calls.open_bank_account("a", 1_000), "account")
    receiver = await client.made(calls.open_bank_account("b", 0), "account")
    transfer = await client.made(calls.transfer(sender, receiver, 500), "transfer")
    assert (await app.http.post(f"/api/bank-transfers/{transfer}/cancel")).status_code == 200


async def test_a_transfer_whose_money_is_spent_cannot_be_cancelled(app: FundsApp, client: Funds) -> None:
    first, second, third = [await client.made(calls.open_bank_account(name, 1_000), "account") for name in "abc"]
    transfer = await client.made(calls.transfer(first, second, 1_000), "transfer")
    await client.send(calls.transfer(second, third, 1_500))
    await refused(app, calls.cancel(transfer), 400, "Insufficient balance", "5 USD", "10 USD")


async def test_only_an_empty_bank_account_can_be_closed_and_a_closed_one_is_frozen(
    app: FundsApp, client: Funds
) -> None:
    first, second = [await client.made(calls.open_bank_account(name, 1_000), "account") for name in "ab"]
    await refused(app, calls.set_bank_account_status(first, "closed"), 409, "still holds 10 USD")
    transfer = await client.made(calls.transfer(first, second, 1_000), "transfer")
    assert (await client.send(calls.set_bank_account_status(first, "closed"))).body["account"]["status"] == "closed"
    await refused(app, calls.transfer(second, first, 1), 409, "is closed")
    await refused(app, calls.cancel(transfer), 409, "is closed")
    await client.send(calls.set_bank_account_status(first, "active"))
    assert (await client.send(calls.cancel(transfer))).status == 200


# --- Refusals of every route. ---

UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("/api/retainers", {"clientId": "c", "retainerType": "t", "initialAmount": -1}, "initialAmount"),
    ("/api/retainers", {"clientId": "c", "retainerType": "t", "initialAmount": 1, "currency": "usd"}, "currency"),
    ("/api/retainers", {"clientId": "c", "retainerType": "t"}, "initialAmount"),
    ("/api/retainers", {"clientId": "c", "retainerType": "t", "initialAmount": 1, "gift": True}, "gift"),
    ("/api/retainers/r/consume", {"amount": 0}, "amount"),
    ("/api/retainers/r/consume", {"amount": -0.01}, "amount"),
    ("/api/retainers/r/consume", {"amount": 1.001}, "amount"),
    ("/api/retainers/r/consume", {"amount": "1"}, "amount"),
    ("/api/retainers/r/consume", {"amount": True}, "amount"),
    ("/api/retainers/r/consume", {"amount": 10**13}, "amount"),
    ("/api/retainers/r/replenish", {"amount": 0}, "amount"),
    ("/api/invoices", {"clientId": "c", "totalAmount": 0}, "totalAmount"),
    ("/api/invoices/i/payments", {"amount": 1}, "paymentMethod"),
    ("/api/payments", {"customerId": "c", "amount": 1, "paymentMethod": "card", "status": "failed"}, "status"),
    ("/api/payments", {"customerId": "", "amount": 1, "paymentMethod": "card"}, "customerId"),
    ("/api/bank-transfers", {"fromAccountId": "a", "toAccountId": "a", "amount": 1}, "toAccountId"),
    ("/api/bank-transfers", {"fromAccountId": "a", "toAccountId": "b", "amount": 1, "fee": -1}, "fee"),
    ("/api/bank-transfers/t/cancel", {"reason": 1}, "reason"),
]


async def test_an_invalid_request_names_the_field(app: FundsApp) -> None:
    for path, body, field in UNFIT:
        answer = await refused(app, Call(path, body), 422)
        assert [error["field"] for error in answer.body["errors"]] == [field], (path, body)


async def test_changing_something_unknown_is_a_404(app: FundsApp) -> None:
    for call in (
        calls.consume("nobody", 1),
        calls.replenish("nobody", 1),
        calls.set_retainer_status("nobody", "inactive"),
        calls.pay_invoice("nobody", 1),
        calls.complete("nobody"),
        calls.transfer("nobody", "else", 1),
        calls.cancel("nobody"),
        calls.set_bank_account_status("nobody", "closed"),
    ):
        await refused(app, call, 404, "nobody does not exist")


async def test_reading_something_unknown_is_a_404(app: FundsApp) -> None:
    for kind in ("retainers", "invoices", "payments", "bank-accounts", "bank-transfers"):
        response = await app.http.get(f"/api/{kind}/nobody")
        assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json"), kind


async def test_currencies_are_never_mixed(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 1_000), "retainer")
    invoice = await client.made(calls.issue_invoice("c1", 1_000, currency="EUR"), "invoice")
    dollars = await client.made(calls.open_bank_account("a", 1_000), "account")
    euros = await client.made(calls.open_bank_account("b", 1_000, "EUR"), "account")
    for call, field in (
        (calls.consume(retainer, 1, currency="EUR"), "currency"),
        (calls.replenish(retainer, 1, currency="EUR"), "currency"),
        (calls.consume(retainer, 1, invoiceId=invoice), "currency"),
        (calls.create_payment("c1", 1, invoiceId=invoice, currency="USD"), "currency"),
        (calls.transfer(dollars, euros, 1), "toAccountId"),
    ):
        answer = await refused(app, call, 422, "USD", "EUR")
        assert answer.body["errors"][0]["field"] == field


async def test_an_account_in_yen_takes_no_half_a_yen(app: FundsApp, client: Funds) -> None:
    """Even if the request leaves the currency to the account."""
    yen = {"currency": "JPY"}
    retainer = await client.send(
        Call("/api/retainers", {"clientId": "c", "retainerType": "t", "initialAmount": 100, **yen})
    )
    invoice = await client.send(Call("/api/invoices", {"clientId": "c", "totalAmount": 100, **yen}))
    bank = {"name": "n", "accountNumber": "1", "bankName": "b", "balance": 100, **yen}
    first, second = [await client.send(Call("/api/bank-accounts", bank)) for _ in range(2)]
    retainer_id, invoice_id = retainer.body["retainer"]["_id"], invoice.body["invoice"]["_id"]
    ends = {"fromAccountId": first.body["account"]["_id"], "toAccountId": second.body["account"]["_id"]}
    for path, body in (
        (f"/api/retainers/{retainer_id}/consume", {"amount": 10.5}),
        (f"/api/retainers/{retainer_id}/replenish", {"amount": 10.5}),
        (f"/api/invoices/{invoice_id}/payments", {"amount": 10.5, "paymentMethod": "wire"}),
        ("/api/payments", {"customerId": "c", "amount": 10.5, "paymentMethod": "wire", "invoiceId": invoice_id}),
        ("/api/bank-transfers", ends | {"amount": 10.5}),
        ("/api/bank-transfers", ends | {"amount": 10, "fee": 0.5}),
    ):
        await refused(app, Call(path, body), 422, "JPY has no decimals, but amount is")


async def test_no_account_holds_more_than_a_json_number_can_express(app: FundsApp, client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 10**14), "retainer")
    await refused(app, calls.replenish(retainer, 1), 422, "would hold more")


# --- Lists. ---


async def pages(client: Funds, path: str) -> list[dict[str, Any]]:
    """Read a whole list, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = await client.get(f"{path}limit=2{cursor}")
        found += page["items"]
        if page["nextCursor"] is None:
            return found
        cursor = f"&cursor={page['nextCursor']}"


async def test_every_list_pages_through_everything_once(client: Funds) -> None:
    first, second = [await client.made(calls.open_bank_account(name, 1_000), "account") for name in "ab"]
    made = {
        "retainers": {await client.made(calls.open_retainer("c1", 1), "retainer") for _ in range(5)},
        "invoices": {await client.made(calls.issue_invoice("c1", 1), "invoice") for _ in range(5)},
        "payments": {await client.made(calls.create_payment("c1", 1), "payment") for _ in range(5)},
        "bank-accounts": {first, second},
        "bank-transfers": {await client.made(calls.transfer(first, second, 1), "transfer") for _ in range(5)},
    }
    for kind, ids in made.items():
        listed = [item["_id"] for item in await pages(client, f"/api/{kind}?")]
        assert listed == sorted(ids)


async def test_the_ledger_pages_through_an_account_newest_first(client: Funds) -> None:
    retainer = await client.made(calls.open_retainer("c1", 1_000), "retainer")
    for amount in (100, 200, 300, 400):
        await client.send(calls.consume(retainer, amount))
    await client.made(calls.open_retainer("c1", 1_000), "retainer")
    entries = await pages(client, f"/api/ledger?account=retainer:{retainer}&")
    assert len(entries) == len({entry["_id"] for entry in entries}) == 5
    assert sorted(entry["postings"][0]["amount"] for entry in entries) == [1, 2, 3, 4, 10]
    assert [entry["at"] for entry in entries] == sorted((entry["at"] for entry in entries), reverse=True)
    assert entries[-1]["operation"] == "retainer.opened"
    assert len(await pages(client, "/api/ledger?")) == 6


async def test_an_invalid_ledger_request_is_a_422(app: FundsApp) -> None:
    for query in ("cursor=x", "limit=0", "limit=101", "account="):
        response = await app.http.get(f"/api/ledger?{query}")
        assert response.status_code == 422, query
        assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_the_routes_are_described(app: FundsApp) -> None:
    document = (await app.http.get("/openapi.json")).json()
    assert {"/api/retainers", "/api/invoices/{invoice_id}/payments", "/api/ledger"} <= set(document["paths"])
    assert "_id" in document["components"]["schemas"]["RetainerView"]["properties"]


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_funds_work_over_both_drivers(mongodb_url: str, database_prefix: str, driver: str) -> None:
    if driver == "motor":
        pytest.importorskip("motor")
    async with funds_app(mongodb_url, database_prefix, driver) as app:
        retainer = await app.client.made(calls.open_retainer("c1", 1_000), "retainer")
        assert (await app.client.send(calls.consume(retainer, 800), new_id())).status == 200
        assert (await app.client.send(calls.consume(retainer, 800), new_id())).status == 400
        assert await app.client.retainer_balance(retainer) == 200
        assert len((await app.client.get("/api/ledger"))["items"]) == 2
