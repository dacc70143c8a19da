"""The funds API of real payment processes: races with one winner, and a model that predicts every answer."""

import asyncio
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pymongo
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test
from pymongo.asynchronous.database import AsyncDatabase

from tests.support import funds_client
from tests.support.access import ADMIN
from tests.support.builders import new_id
from tests.support.funds_client import Answer, Books, Call, Document, Funds, minor_units, number, read_books
from tests.support.funds_model import Bank, Invoice, Model, Payment, Refusals, Retainer, Transfer
from tests.support.processes import KEEP_SECONDS, run_stack
from tests.support.seeds import IS_LONG_FORM, seed_count
from tests.support.servers import Servers, delete_topology

PREFIX = "tfunds"
EXAMPLES, STEPS = seed_count(cost=2) if IS_LONG_FORM else 6, 20
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEEP_SECONDS)
SPREADS = pytest.mark.parametrize("spread", [1, 2], ids=["one process", "two processes"])


@dataclass(frozen=True)
class World:
    """Two payment processes over one database."""

    urls: Sequence[str]
    http: httpx.AsyncClient
    database: AsyncDatabase[Document]

    def clients(self, spread: int) -> list[Funds]:
        """Return a client for each of the first processes."""
        return [Funds(self.http, lambda url=url: url) for url in self.urls[:spread]]  # type: ignore[misc]

    async def at_once(self, spread: int, calls: Sequence[Call]) -> list[Answer]:
        """Send all calls concurrently, over that many processes in turn; retry after a 503, under the same key."""
        clients = itertools.cycle(self.clients(spread))
        sent = (client.insist(call, new_id(), 180) for client, call in zip(clients, calls, strict=False))
        return list(await asyncio.gather(*sent))


@pytest.fixture(scope="module")
async def processes(servers: Servers) -> AsyncIterator[World]:
    """Start two processes once for all tests of this file; each test opens its own accounts."""
    await delete_topology(servers.amqp_url)
    async with (
        pymongo.AsyncMongoClient[Document](servers.mongodb_url) as mongo,
        httpx.AsyncClient(timeout=60, limits=LIMITS, headers=ADMIN) as http,
        run_stack(servers.mongodb_url, servers.amqp_url, PREFIX, log_level="WARNING") as stack,
    ):
        await mongo.drop_database(f"{PREFIX}_payments")
        started = await stack.start("payment", "payment")
        yield World([process.url for process in started], http, mongo[f"{PREFIX}_payments"])
        await stack.close()
        await mongo.drop_database(f"{PREFIX}_payments")


@pytest.fixture
async def world(processes: World) -> AsyncIterator[World]:
    """Yield the processes, and check the books after the test."""
    yield processes
    assert (await read_books(processes.database)).discrepancies() == []


@SPREADS
async def test_of_ten_concurrent_consumptions_of_a_balance_one_succeeds(world: World, spread: int) -> None:
    funds = world.clients(1)[0]
    retainer = await funds.made(funds_client.open_retainer("c1", 1000_00), "retainer")
    answers = await world.at_once(spread, [funds_client.consume(retainer, 800_00)] * 10)
    assert Counter(answer.status for answer in answers) == {200: 1, 400: 9}
    assert all("200" in a.body["detail"] and "800" in a.body["detail"] for a in answers if a.status == 400)
    assert await funds.retainer_balance(retainer) == 200_00


@SPREADS
async def test_of_ten_concurrent_completions_of_one_payment_one_succeeds(world: World, spread: int) -> None:
    funds = world.clients(1)[0]
    invoice = await funds.made(funds_client.issue_invoice("c1", 1000_00), "invoice")
    call = funds_client.create_payment("c1", 800_00, invoiceId=invoice)
    payment = await funds.made(call, "payment")
    answers = await world.at_once(spread, [funds_client.complete(payment)] * 10)
    assert Counter(answer.status for answer in answers) == {200: 1, 400: 9}
    assert (await funds.get(f"/api/invoices/{invoice}"))["invoice"]["balanceDue"] == 200
    assert _entries(await read_books(world.database), "payment.completed", "paymentId", payment) == 1


@SPREADS
async def test_of_ten_concurrent_transfers_of_a_balance_one_succeeds(world: World, spread: int) -> None:
    funds = world.clients(1)[0]
    source, target = await _two_accounts(funds, 1000_00, 0)
    answers = await world.at_once(spread, [funds_client.transfer(source, target, 800_00)] * 10)
    assert Counter(answer.status for answer in answers) == {201: 1, 400: 9}
    assert [await funds.bank_balance(account) for account in (source, target)] == [200_00, 800_00]


@SPREADS
async def test_of_ten_concurrent_cancellations_of_one_transfer_one_succeeds(world: World, spread: int) -> None:
    funds = world.clients(1)[0]
    source, target = await _two_accounts(funds, 1000_00, 0)
    transfer = await funds.made(funds_client.transfer(source, target, 800_00, fee=1), "transfer")
    answers = await world.at_once(spread, [funds_client.cancel(transfer)] * 10)
    assert Counter(answer.status for answer in answers) == {200: 1, 400: 9}
    assert [await funds.bank_balance(account) for account in (source, target)] == [1000_00, 0]
    assert _entries(await read_books(world.database), "transfer.cancelled", "transferId", transfer) == 1


@SPREADS
async def test_concurrent_transfers_in_both_directions_all_succeed(world: World, spread: int) -> None:
    """Each needs what the other holds: locks taken in the order of the request would deadlock."""
    funds = world.clients(1)[0]
    one, other = await _two_accounts(funds, 1000_00, 1000_00)
    there, back = funds_client.transfer(one, other, 7_00), funds_client.transfer(other, one, 5_00)
    answers = await world.at_once(spread, [call for _ in range(40) for call in (there, there, back, back)])
    assert Counter(answer.status for answer in answers) == {201: 160}
    assert [await funds.bank_balance(account) for account in (one, other)] == [840_00, 1160_00]


async def _two_accounts(funds: Funds, first: int, second: int) -> tuple[str, str]:
    one = await funds.made(funds_client.open_bank_account("one", first), "account")
    return one, await funds.made(funds_client.open_bank_account("other", second), "account")


def _entries(books: Books, operation: str, reference: str, value: str) -> int:
    return sum(1 for entry in books.of_operation(operation) if entry["reference"].get(reference) == value)


# --- The model. ---

AMOUNTS = st.one_of(st.sampled_from([1, 10_00, 25_00]), st.integers(1, 40_00))
TRANSFERRED = st.one_of(st.sampled_from([1, 5_00]), AMOUNTS)
FEES = st.sampled_from([0, 1, 2_50])
OPENINGS = st.one_of(st.sampled_from([60_00, 30_00, 0]), AMOUNTS)
CUSTOMERS = st.sampled_from(["c1", "c2"])


class FundsMachine(RuleBasedStateMachine):
    """Sends the same requests to the service and the model, and compares the results.

    The service must grant what the model grants, and refuse what it refuses, for one of the model's reasons. Everything
    that a request touches is read and compared at once, and everything else at the end.
    """

    retainers, invoices, payments = Bundle("retainers"), Bundle("invoices"), Bundle("payments")
    banks, other_banks, transfers = Bundle("banks"), Bundle("other banks"), Bundle("transfers")

    def __init__(self, client: httpx.Client, urls: Sequence[str]) -> None:
        super().__init__()
        self.client = client
        self.urls = itertools.cycle(urls)
        self.model = Model()
        # A customer's credit is found by name, so each run needs its own names.
        self.run_id = secrets.token_hex(4)

    def teardown(self) -> None:
        for retainer_id in self.model.retainers:
            self.compare_retainer(retainer_id)
        for invoice_id in self.model.invoices:
            self.compare_invoice(invoice_id)
        for bank_id in self.model.banks:
            self.compare_bank(bank_id)
        for payment_id in self.model.payments:
            self.compare_payment(payment_id)
        for transfer_id in self.model.transfers:
            self.compare_transfer(transfer_id)
        for (customer, currency), credit in self.model.credit.items():
            assert self.ledger_balance(f"customer:{customer}:{currency}") == credit

    # --- Initial accounts, so that every step can move money. ---

    @initialize(target=retainers, amounts=st.tuples(OPENINGS, OPENINGS, OPENINGS))
    def open_retainers(self, amounts: Sequence[int]) -> Any:
        owners = (("c1", "USD"), ("c2", "USD"), ("c1", "EUR"))
        return multiple(*[self.open_retainer(*owner, amount) for owner, amount in zip(owners, amounts, strict=True)])

    @initialize(target=invoices, totals=st.tuples(AMOUNTS, AMOUNTS))
    def issue_invoices(self, totals: Sequence[int]) -> Any:
        return multiple(self.issue_invoice("c1", "USD", totals[0]), self.issue_invoice("c2", "EUR", totals[1]))

    @initialize(target=payments, amounts=st.tuples(AMOUNTS, AMOUNTS))
    def create_payments(self, amounts: Sequence[int]) -> Any:
        pending, completed = (Payment(self.name("c1"), "USD", amount, None) for amount in amounts)
        return multiple(self.create_payment(pending, False), self.create_payment(completed, True))

    @initialize(target=banks, balances=st.tuples(OPENINGS, OPENINGS))
    def open_bank_accounts(self, balances: Sequence[int]) -> Any:
        return multiple(*map(self.open_bank_account, ("USD", "USD"), balances))

    @initialize(target=other_banks, balances=st.tuples(OPENINGS, OPENINGS))
    def open_other_bank_accounts(self, balances: Sequence[int]) -> Any:
        return multiple(*map(self.open_bank_account, ("USD", "EUR"), balances))

    # --- Retainers. ---

    def open_retainer(self, customer: str, currency: str, amount: int) -> str:
        client = self.name(customer)
        body = self.create(funds_client.open_retainer(client, amount, currency=currency), "retainer")
        retainer_id: str = body["_id"]
        self.model.retainers[retainer_id] = Retainer.opened(client, currency, amount)
        self.compare_retainer(retainer_id)
        return retainer_id

    @rule(retainer_id=retainers, amount=AMOUNTS, invoice_id=st.none() | invoices)
    def consume(self, retainer_id: str, amount: int, invoice_id: str | None) -> None:
        more = {} if invoice_id is None else {"invoiceId": invoice_id}
        call = funds_client.consume(retainer_id, amount, **more)
        self.send(call, self.model.consume(retainer_id, amount, invoice_id))
        self.compare_retainer(retainer_id)
        if invoice_id is not None:
            self.compare_invoice(invoice_id)

    @rule(retainer_id=retainers, amount=AMOUNTS, payment_id=st.sampled_from([None, "from elsewhere"]) | payments)
    def replenish(self, retainer_id: str, amount: int, payment_id: str | None) -> None:
        more = {} if payment_id is None else {"paymentId": payment_id}
        call = funds_client.replenish(retainer_id, amount, **more)
        self.send(call, self.model.replenish(retainer_id, amount, payment_id))
        self.compare_retainer(retainer_id)

    @rule(retainer_id=retainers, status=st.sampled_from(["active", "inactive"]))
    def set_retainer_status(self, retainer_id: str, status: str) -> None:
        call = funds_client.set_retainer_status(retainer_id, status)
        self.send(call, self.model.set_retainer_status(retainer_id, status))
        self.compare_retainer(retainer_id)

    # --- Invoices and payments. ---

    def issue_invoice(self, customer: str, currency: str, total: int) -> str:
        client = self.name(customer)
        body = self.create(funds_client.issue_invoice(client, total, currency=currency), "invoice")
        invoice_id: str = body["_id"]
        self.model.invoices[invoice_id] = Invoice(client, currency, total, total)
        self.compare_invoice(invoice_id)
        return invoice_id

    @rule(invoice_id=invoices, amount=AMOUNTS)
    def pay_invoice(self, invoice_id: str, amount: int) -> None:
        self.send(funds_client.pay_invoice(invoice_id, amount), self.model.pay_invoice(invoice_id, amount))
        self.compare_invoice(invoice_id)

    @rule(target=payments, customer=CUSTOMERS, amount=AMOUNTS, invoice_id=st.none() | invoices, completed=st.booleans())
    def pay(self, customer: str, amount: int, invoice_id: str | None, completed: bool) -> Any:
        currency = "USD" if invoice_id is None else self.model.invoices[invoice_id].currency
        return self.create_payment(Payment(self.name(customer), currency, amount, invoice_id), completed)

    def create_payment(self, payment: Payment, completed: bool) -> Any:
        more = {"currency": payment.currency, "status": "completed" if completed else "pending"}
        if payment.invoice is not None:
            more["invoiceId"] = payment.invoice
        refusals = self.model.refusals_of_settling(payment) if completed else set()
        body = self.send(funds_client.create_payment(payment.customer, payment.amount, **more), refusals, 201)
        if body is None:
            return multiple()
        payment_id: str = body["payment"]["_id"]
        self.model.payments[payment_id] = payment
        if completed:
            self.model.settle(payment)
        self.compare_payment(payment_id)
        return payment_id

    @rule(payment_id=payments)
    def complete(self, payment_id: str) -> None:
        self.send(funds_client.complete(payment_id), self.model.complete(payment_id))
        self.compare_payment(payment_id)
        invoice_id = self.model.payments[payment_id].invoice
        if invoice_id is not None:
            self.compare_invoice(invoice_id)

    # --- Bank accounts. ---

    def open_bank_account(self, currency: str, balance: int) -> str:
        body = self.create(funds_client.open_bank_account("one", balance, currency), "account")
        bank_id: str = body["_id"]
        self.model.banks[bank_id] = Bank(currency, balance)
        self.compare_bank(bank_id)
        return bank_id

    @rule(target=transfers, one=banks, other=other_banks, back=st.booleans(), amount=TRANSFERRED, fee=FEES)
    def transfer(self, one: str, other: str, back: bool, amount: int, fee: int) -> Any:
        source, target_id = (other, one) if back else (one, other)
        transfer = Transfer(source, target_id, amount, fee)
        call = funds_client.transfer(source, target_id, amount, fee=number(fee))
        body = self.send(call, self.model.transfer(transfer), 201)
        self.compare_bank(source)
        self.compare_bank(target_id)
        if body is None:
            return multiple()
        transfer_id: str = body["transfer"]["_id"]
        self.model.transfers[transfer_id] = transfer
        self.compare_transfer(transfer_id)
        return transfer_id

    @rule(transfer_id=transfers)
    def cancel(self, transfer_id: str) -> None:
        self.send(funds_client.cancel(transfer_id), self.model.cancel(transfer_id))
        self.compare_transfer(transfer_id)
        self.compare_bank(self.model.transfers[transfer_id].source)
        self.compare_bank(self.model.transfers[transfer_id].target)

    @rule(bank_id=banks | other_banks, status=st.sampled_from(["active", "closed"]))
    def set_bank_status(self, bank_id: str, status: str) -> None:
        call = funds_client.set_bank_account_status(bank_id, status)
        self.send(call, self.model.set_bank_status(bank_id, status))
        self.compare_bank(bank_id)

    # --- Requests to the service. ---

    def name(self, customer: str) -> str:
        return f"{self.run_id} {customer}"

    def create(self, call: Call, kind: str) -> Document:
        body = self.send(call, set(), 201)
        assert body is not None
        created: Document = body[kind]
        return created

    def send(self, call: Call, refusals: Refusals, granted: int = 200) -> Document | None:
        """Send the request to the next process; return the body if the model predicts success, else None."""
        response = self.client.request(call.method, next(self.urls) + call.path, json=call.body)
        expected = refusals or {granted}
        assert response.status_code in expected, (call, response.status_code, response.text, expected)
        return None if refusals else response.json()

    def get(self, path: str) -> Document:
        response = self.client.get(next(self.urls) + path)
        assert response.status_code == 200, response.text
        found: Document = response.json()
        return found

    def ledger_balance(self, account: str) -> int:
        """Sum a customer's postings, page by page; credits are positive."""
        total, cursor = 0, ""
        while True:
            page = self.get(f"/api/ledger?account={quote(account)}&limit=2{cursor}")
            lines = [posting for entry in page["items"] for posting in entry["postings"]]
            total -= sum(minor_units(line["amount"]) for line in lines if line["account"] == account)
            if page["nextCursor"] is None:
                return total
            cursor = f"&cursor={page['nextCursor']}"

    def compare_retainer(self, retainer_id: str) -> None:
        shown = self.get(f"/api/retainers/{retainer_id}")["data"]
        assert_shows(shown, self.model.shown_retainer(retainer_id))
        for name in ("consumptions", "deposits"):
            amounts = Counter(minor_units(movement["amount"]) for movement in shown[name])
            assert amounts == Counter(getattr(self.model.retainers[retainer_id], name)), (name, shown)

    def compare_invoice(self, invoice_id: str) -> None:
        assert_shows(self.get(f"/api/invoices/{invoice_id}")["invoice"], self.model.shown_invoice(invoice_id))

    def compare_payment(self, payment_id: str) -> None:
        assert_shows(self.get(f"/api/payments/{payment_id}")["payment"], self.model.shown_payment(payment_id))

    def compare_transfer(self, transfer_id: str) -> None:
        shown = self.get(f"/api/bank-transfers/{transfer_id}")["transfer"]
        assert_shows(shown, self.model.shown_transfer(transfer_id))

    def compare_bank(self, bank_id: str) -> None:
        assert_shows(self.get(f"/api/bank-accounts/{bank_id}")["account"], self.model.shown_bank(bank_id))


def assert_shows(shown: Document, expected: Document) -> None:
    assert {name: shown.get(name) for name in expected} == expected


@pytest.mark.long_form
async def test_any_sequence_of_operations_agrees_with_a_plain_model(world: World) -> None:
    """The state machine is synchronous, so it runs in a thread; the loop keeps reading the processes' output."""

    def run() -> None:
        with httpx.Client(timeout=60, limits=LIMITS, headers=ADMIN) as client:
            run_state_machine_as_test(
                lambda: FundsMachine(client, world.urls),  # type: ignore[arg-type]
                settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, report_multiple_bugs=False),
            )

    await asyncio.to_thread(run)
