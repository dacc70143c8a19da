"""Idempotency keys of the funds API: every repeat gets the first answer."""

from collections.abc import AsyncIterator

import pytest
from pymongo.errors import DuplicateKeyError
from structlog.testing import capture_logs

from payment_service.funds.idempotency import (
    IdempotencyKeyReusedError,
    IdempotentRequest,
    IdempotentRunner,
    StoredResponse,
)
from payment_service.funds.requests import Consumption
from payment_service.ledger.ledger import references
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import UnitOfWork
from shared.clock import utc_now
from tests.support import funds_client as calls
from tests.support.builders import connected, new_id
from tests.support.funds_app import FundsApp, assert_books_balance, funds_app
from tests.support.funds_client import Answer, Call
from tests.support.monitoring import counted
from tests.support.turns import turn_taken

pytestmark = pytest.mark.both_databases


@pytest.fixture
async def app(mongodb_url: str, database_prefix: str) -> AsyncIterator[FundsApp]:
    async with funds_app(mongodb_url, database_prefix) as app:
        yield app
        await assert_books_balance(app)


async def test_every_repeated_post_gets_its_first_answer(app: FundsApp) -> None:
    client = app.client
    retainer = await client.made(calls.open_retainer("c1", 1_000), "retainer")
    invoice = await client.made(calls.issue_invoice("c1", 1_000), "invoice")
    payment = await client.made(calls.create_payment("c1", 1_000), "payment")
    sender, receiver = [await client.made(calls.open_bank_account(name, 1_000), "account") for name in "ab"]
    transfer = await client.made(calls.transfer(sender, receiver, 100), "transfer")
    for call in (
        calls.open_retainer("c1", 1_999),
        calls.consume(retainer, 101),
        calls.replenish(retainer, 101),
        calls.issue_invoice("c1", 1_000),
        calls.pay_invoice(invoice, 101),
        calls.create_payment("c1", 1_000),
        calls.complete(payment),
        calls.open_bank_account("c", 1_000),
        calls.transfer(sender, receiver, 101),
        calls.cancel(transfer),
    ):
        key = new_id()
        first = await client.send(call, key)
        entries = await app.database["entries"].count_documents({})
        assert first.status in (200, 201), (call, first)
        again = await client.send(call, key)
        assert again == first
        assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
        if first.status == 201:
            assert again.headers["location"] == first.headers["location"]
            (created,) = first.body.values()
            found = await app.http.get(first.headers["location"])
            (shown,) = found.json().values()
            assert shown["_id"] == created["_id"]
        assert await app.database["entries"].count_documents({}) == entries


async def test_repeats_are_counted_and_logged(app: FundsApp) -> None:
    client, key = app.client, new_id()
    call = calls.open_retainer("c1", 1_000)
    before = counted("repeats_answered_total", operation="retainer.opened")
    await client.send(call, key)
    assert counted("repeats_answered_total", operation="retainer.opened") == before
    with capture_logs() as logs:
        await client.send(call, key)
    assert counted("repeats_answered_total", operation="retainer.opened") == before + 1
    assert [line["operation"] for line in logs if "already processed" in line["event"]] == ["retainer.opened"]


async def test_refusals_are_told_apart_and_logged_without_customer_and_balance(app: FundsApp) -> None:
    client = app.client
    retainer = await client.made(calls.open_retainer("a customer", 1_000), "retainer")
    invoice = await client.made(calls.issue_invoice("a customer", 1_000), "invoice")
    payment = await client.made(calls.create_payment("a customer", 1_000), "payment")
    sender, receiver = [await client.made(calls.open_bank_account(name, 1_000), "account") for name in "ab"]
    transfer = await client.made(calls.transfer(sender, receiver, 100), "transfer")
    await client.send(calls.complete(payment))
    await client.send(calls.cancel(transfer))
    for call, operation, reason, amount in (
        (calls.consume(retainer, 1_999), "retainer.consumed", "insufficient_balance", 19.99),
        (calls.consume(new_id(), 100), "retainer.consumed", "missing_record", 1),
        (calls.pay_invoice(invoice, 1_001), "invoice.paid", "overpayment", 10.01),
        (calls.complete(payment), "payment.completed", "already_completed", None),
        (calls.cancel(transfer), "transfer.cancelled", "already_cancelled", None),
        (calls.set_bank_account_status(sender, "closed"), "bank.status", "wrong_state", None),
        (calls.consume(retainer, 1, currency="EUR"), "retainer.consumed", "mismatch", 0.01),
    ):
        before = counted("transaction_refusals_total", operation=operation, reason=reason)
        with capture_logs() as logs:
            answer = await client.send(call)
        assert not answer.succeeded, call
        assert counted("transaction_refusals_total", operation=operation, reason=reason) == before + 1
        (line,) = [line for line in logs if line["event"] == "transaction failed"]
        assert (line["operation"], line["reason"], line["log_level"]) == (operation, reason, "info")
        assert line.get("amount") == amount
        assert "a customer" not in str(line), "a customer is no business of the log"
        assert any(account.partition(":")[2] in call.path for account in line["accounts"]) or "transfer" in call.path


async def test_what_is_no_refusal_is_logged_as_a_warning(app: FundsApp, monkeypatch: pytest.MonkeyPatch) -> None:
    retainer = await app.client.made(calls.open_retainer("c1", 1_000), "retainer")
    async with turn_taken(app.transactions, *references([f"retainer:{retainer}"])):
        monkeypatch.setattr(app.transactions, "_limit_seconds", 0.05)
        with capture_logs() as logs:
            assert (await app.client.send(calls.consume(retainer, 100))).status == 503
    (line,) = [line for line in logs if line["event"] == "transaction failed"]
    assert (line["log_level"], line["reason"], line["amount"]) == ("warning", "contention", 1)


async def test_a_refusal_is_repeated_even_if_the_request_would_succeed_now(app: FundsApp) -> None:
    client, key = app.client, new_id()
    retainer = await client.made(calls.open_retainer("c1", 0), "retainer")
    first = await client.send(calls.consume(retainer, 100), key)
    assert (first.status, "idempotent-replayed" in first.headers) == (400, False)
    await client.send(calls.replenish(retainer, 100))
    response = await app.http.post(
        f"/api/retainers/{retainer}/consume", json={"amount": 1}, headers={"Idempotency-Key": key}
    )
    assert Answer(response.status_code, response.json()).said == first.said
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["idempotent-replayed"] == "true"
    assert await client.retainer_balance(retainer) == 100


@pytest.mark.parametrize("outcome", ["granted", "refused"])
async def test_a_key_is_for_one_request_only(app: FundsApp, outcome: str) -> None:
    client, key = app.client, new_id()
    retainer = await client.made(calls.open_retainer("c1", 1_000 if outcome == "granted" else 0), "retainer")
    another = await client.made(calls.open_retainer("c1", 1_000), "retainer")
    await client.send(calls.consume(retainer, 100), key)
    for call in (
        calls.consume(retainer, 101),
        calls.consume(retainer, 100, description="again"),
        calls.consume(another, 100),
        calls.replenish(retainer, 100),
    ):
        answer = await client.send(call, key)
        assert answer.status == 422
        assert answer.body["errors"][0]["field"] == "Idempotency-Key"
    assert await client.retainer_balance(another) == 1_000


async def test_an_invalid_request_does_not_use_its_key_up(app: FundsApp) -> None:
    client, key = app.client, new_id()
    retainer = await client.made(calls.open_retainer("c1", 1_000), "retainer")
    assert (await client.send(Call(f"/api/retainers/{retainer}/consume", {"amount": 0}), key)).status == 422
    assert (await client.send(calls.consume(retainer, 100), key)).status == 200


async def test_the_same_request_may_be_written_differently(app: FundsApp) -> None:
    client, key = app.client, new_id()
    first = await client.send(Call("/api/invoices", {"clientId": "c1", "totalAmount": 10}), key)
    again = await client.send(Call("/api/invoices", {"totalAmount": 10.0, "clientId": "c1", "currency": "USD"}), key)
    assert (first.status, again) == (201, first)


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_has_1_to_255_characters(app: FundsApp, key: str) -> None:
    headers = {"Idempotency-Key": key}
    response = await app.http.post("/api/invoices", json={"clientId": "c1", "totalAmount": 1}, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].lower() == "idempotency-key"
    headers["Idempotency-Key"] = "k" * 255
    response = await app.http.post("/api/invoices", json={"clientId": "c1", "totalAmount": 1}, headers=headers)
    assert response.status_code == 201


async def test_an_operation_overtaken_by_an_insert_is_retried(mongodb_url: str, database_prefix: str) -> None:
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        runner = IdempotentRunner(Transactions(database), utc_now)
        runs = 0

        async def work(unit: UnitOfWork) -> StoredResponse:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise DuplicateKeyError("inserted by another process")
            return StoredResponse(200, {"runs": runs})

        assert await runner.run(IdempotentRequest(new_id(), "POST", "/x"), "test", work) == StoredResponse(
            200, {"runs": 2}
        )


async def test_a_success_in_another_process_outranks_a_refusal(mongodb_url: str, database_prefix: str) -> None:
    """A refusal is stored after its transaction; the same request may have succeeded in the meantime."""
    async with connected(mongodb_url, f"{database_prefix}_payments") as database:
        elsewhere = IdempotentRunner(Transactions(database), utc_now)
        runner = IdempotentRunner(Transactions(database), utc_now)
        request = IdempotentRequest(new_id(), "POST", "/x", Consumption(amount=1))

        async def granted(_unit: UnitOfWork) -> StoredResponse:
            return StoredResponse(200, {"granted": True})

        async def refused(_unit: UnitOfWork) -> StoredResponse:
            await elsewhere.run(request, "test", granted)
            raise LedgerRefusalError("not enough")

        repeated = StoredResponse(200, {"granted": True}, replayed=True)
        assert await runner.run(request, "test", refused) == repeated
        assert await elsewhere.run(request, "test", refused) == repeated
        with pytest.raises(IdempotencyKeyReusedError):
            await runner.run(IdempotentRequest(request.key, "POST", "/y", Consumption(amount=1)), "test", granted)
