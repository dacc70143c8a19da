"""A client of the funds API, and a check of the books that shares no code with the service.

A request is a value (`Call`), so a test can send it from any client, repeat it under the same key, and compare it with
the journal afterwards. Amounts are minor units here; the bodies have them as the JSON numbers of the contract.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern

from tests.support.eventually import eventually

Document = dict[str, Any]

DEBIT_NORMAL = ("invoice", "bank", "system:clearing", "system:bank-fees")
CREDIT_NORMAL = ("retainer", "customer", "system:revenue", "system:opening")


def number(minor: int) -> int | float:
    """Convert minor units to a JSON number."""
    return minor // 100 if minor % 100 == 0 else minor / 100


def minor_units(value: float) -> int:
    """Convert a JSON number to minor units."""
    return round(value * 100)


# --- Requests. ---


@dataclass(frozen=True)
class Call:
    """One request that changes something."""

    path: str
    body: Document
    method: str = "POST"


def open_retainer(client: str, amount: int, **more: Any) -> Call:
    body = {"clientId": client, "retainerType": "prepaid", "initialAmount": number(amount)}
    return Call("/api/retainers", body | more)


def consume(retainer: str, amount: int, **more: Any) -> Call:
    return Call(f"/api/retainers/{retainer}/consume", {"amount": number(amount), **more})


def replenish(retainer: str, amount: int, **more: Any) -> Call:
    return Call(f"/api/retainers/{retainer}/replenish", {"amount": number(amount), **more})


def set_retainer_status(retainer: str, status: str) -> Call:
    return Call(f"/api/retainers/{retainer}", {"status": status}, "PATCH")


def issue_invoice(client: str, total: int, **more: Any) -> Call:
    return Call("/api/invoices", {"clientId": client, "totalAmount": number(total), **more})


def pay_invoice(invoice: str, amount: int) -> Call:
    return Call(f"/api/invoices/{invoice}/payments", {"amount": number(amount), "paymentMethod": "card"})


def create_payment(customer: str, amount: int, **more: Any) -> Call:
    body = {"customerId": customer, "amount": number(amount), "paymentMethod": "card"}
    return Call("/api/payments", body | more)


def complete(payment: str) -> Call:
    return Call(f"/api/payments/{payment}/complete", {})


def open_bank_account(name: str, balance: int, currency: str = "USD") -> Call:
    body = {"name": name, "accountNumber": f"no {name}", "bankName": "First", "currency": currency}
    return Call("/api/bank-accounts", body | {"balance": number(balance)})


def set_bank_account_status(account: str, status: str) -> Call:
    return Call(f"/api/bank-accounts/{account}", {"status": status}, "PATCH")


def transfer(source: str, target: str, amount: int, **more: Any) -> Call:
    body = {"fromAccountId": source, "toAccountId": target, "amount": number(amount)}
    return Call("/api/bank-transfers", body | more)


def cancel(transfer_id: str) -> Call:
    return Call(f"/api/bank-transfers/{transfer_id}/cancel", {})


# --- Sending requests. ---


@dataclass(frozen=True)
class Answer:
    """The answer to a request, and the number of attempts that it took."""

    status: int
    body: Document
    attempts: int = 1
    headers: httpx.Headers = dataclasses.field(default_factory=httpx.Headers, compare=False)

    @property
    def succeeded(self) -> bool:
        return self.status < 300

    @property
    def said(self) -> tuple[int, Document]:
        """Return the answer without the number of attempts, and without the id of the request."""
        return self.status, {name: value for name, value in self.body.items() if name != "requestId"}


class Funds:
    """A client of the funds API; it calls `url` before every attempt, because processes come and go."""

    def __init__(self, http: httpx.AsyncClient, url: Callable[[], str]) -> None:
        self._http = http
        self._url = url

    async def send(self, call: Call, key: str | None = None) -> Answer:
        """Send the request once. Raises the errors of httpx if there is no answer."""
        headers = {} if key is None else {"Idempotency-Key": key}
        response = await self._http.request(call.method, self._url() + call.path, json=call.body, headers=headers)
        return Answer(response.status_code, response.json(), headers=response.headers)

    async def insist(self, call: Call, key: str, within: float) -> Answer:
        """Send the request until it is answered; after a lost connection or a 5xx, repeat it under the same key."""
        attempts = 0

        async def answered() -> Answer:
            nonlocal attempts
            attempts += 1
            answer = await self.send(call, key)
            assert answer.status < 500, answer
            return answer

        answer: Answer = await eventually(answered, within, f"an answer to {call}")
        return replace(answer, attempts=attempts)

    async def made(self, call: Call, kind: str) -> str:
        """Send the request once and return the id of the created resource."""
        answer = await self.send(call)
        assert answer.status == 201, (call, answer)
        created: str = answer.body[kind]["_id"]
        return created

    async def get(self, path: str) -> Document:
        response = await self._http.get(self._url() + path)
        assert response.status_code == 200, response.text
        found: Document = response.json()
        return found

    async def retainer_balance(self, retainer: str) -> int:
        return minor_units((await self.get(f"/api/retainers/{retainer}"))["data"]["currentBalance"])

    async def bank_balance(self, account: str) -> int:
        return minor_units((await self.get(f"/api/bank-accounts/{account}"))["account"]["availableBalance"])


# --- The books. ---


class Books:
    """The books in the payment service's database."""

    def __init__(
        self, accounts: list[Document], entries: list[Document], payments: list[Document], transfers: list[Document]
    ) -> None:
        self.accounts = {account["_id"]: account for account in accounts}
        self.entries = {entry["_id"]: entry for entry in entries}
        self.payments = {payment["_id"]: payment for payment in payments}
        self.transfers = {transfer["_id"]: transfer for transfer in transfers}

    def discrepancies(self) -> list[str]:
        """Return all discrepancies; the list is empty if the books balance."""
        checks = (self._of_entries, self._of_balances, self._of_reversals, self._of_payments, self._of_transfers)
        return [wrong for check in checks for wrong in check()]

    def of_operation(self, operation: str) -> Iterator[Document]:
        return (entry for entry in self.entries.values() if entry["operation"] == operation)

    def _of_entries(self) -> Iterator[str]:
        for entry in self.entries.values():
            name = f"entry {entry['_id']} ({entry['operation']})"
            if sum(posting["amount"] for posting in entry["postings"]):
                yield f"{name}: its postings do not add up to zero"
            for posting in entry["postings"]:
                account = posting["account"]
                system = account.startswith("system:")
                known = account.endswith(f":{entry['currency']}") if system else account in self.accounts
                if not known:
                    yield f"{name}: there is no account {account}"
                elif not system and self.accounts[account]["currency"] != entry["currency"]:
                    yield f"{name}: it is in another currency than {account}"
                if posting.get("balanceAfter", 0) < 0:
                    yield f"{name}: it left {account} below zero"

    def _of_balances(self) -> Iterator[str]:
        sums: defaultdict[str, int] = defaultdict(int)
        for entry in self.entries.values():
            for posting in entry["postings"]:
                sums[posting["account"]] += posting["amount"] * _sign(posting["account"])
        for name, account in self.accounts.items():
            if account["balance"] != sums[name]:
                yield f"{name}: its balance is {account['balance']}, its postings sum to {sums[name]}"
            if account["balance"] < 0:
                yield f"{name}: its balance is {account['balance']}"
            if account["kind"] == "invoice" and account["balance"] > account["totalAmount"]:
                yield f"{name}: more is due than was invoiced"

    def _of_reversals(self) -> Iterator[str]:
        times = Counter(entry["reverses"] for entry in self.entries.values() if entry.get("reverses"))
        for reversed_id, count in times.items():
            if count > 1:
                yield f"entry {reversed_id} is reversed {count} times"
        for entry in self.entries.values():
            if entry.get("reverses"):
                first = self.entries.get(entry["reverses"])
                if first is None or _postings(first) != _postings(entry, -1):
                    yield f"entry {entry['_id']} is not the reverse of {entry['reverses']}"

    def _of_payments(self) -> Iterator[str]:
        completing = ("payment.completed", "invoice.paid")
        entries = (entry for operation in completing for entry in self.of_operation(operation))
        times = Counter(entry["reference"].get("paymentId") for entry in entries)
        for payment_id, payment in self.payments.items():
            expected = 1 if payment["status"] == "completed" else 0
            if times[payment_id] != expected:
                yield f"payment {payment_id} is {payment['status']} and has {times[payment_id]} entries"

    def _of_transfers(self) -> Iterator[str]:
        for operation, field in (("transfer.made", "entryId"), ("transfer.cancelled", "cancelEntryId")):
            times = Counter(entry["reference"].get("transferId") for entry in self.of_operation(operation))
            for transfer_id in times.keys() - self.transfers.keys():
                yield f"{operation}: there is no transfer {transfer_id}"
            for transfer_id, record in self.transfers.items():
                expected = 0 if record.get(field) is None else 1
                if times[transfer_id] != expected:
                    yield f"transfer {transfer_id} is {record['status']} and has {times[transfer_id]} of {operation}"


def _sign(account: str) -> int:
    """Return +1 for accounts that a debit increases, -1 for those that a credit increases."""
    if account.startswith(tuple(f"{kind}:" for kind in DEBIT_NORMAL)):
        return 1
    assert account.startswith(tuple(f"{kind}:" for kind in CREDIT_NORMAL)), f"{account} is not in the chart of accounts"
    return -1


def _postings(entry: Document, factor: int = 1) -> list[tuple[str, int]]:
    return sorted((posting["account"], factor * posting["amount"]) for posting in entry["postings"])


async def read_books(database: AsyncDatabase[Document]) -> Books:
    """Read the books; no process may write to them in the meantime."""
    source = database.with_options(read_concern=ReadConcern("majority"))
    names = ("accounts", "entries", "fund_payments", "bank_transfers")
    return Books(*[await source[name].find().to_list() for name in names])
