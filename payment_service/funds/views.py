"""The response bodies of the funds API. The docstrings of the classes appear in its OpenAPI document."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from payment_service.ledger import chart_of_accounts
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import View
from shared.money import JsonMoney, to_json_number

Id = Annotated[str, Field(alias="_id")]


class Movement(View):
    """What an entry has moved on one account; `balanceAfter` is the account's balance right after it."""

    entry_id: str
    at: datetime
    operation: str
    amount: JsonMoney
    balance_after: JsonMoney
    reference: dict[str, str]
    description: str | None


class RetainerView(View):
    """A retainer; `ledgerAccount` is what the ledger calls it."""

    id: Id
    owner_id: str | None
    client_id: str
    retainer_type: str
    currency: str
    current_balance: JsonMoney
    status: Literal["active", "inactive"]
    ledger_account: str
    created_at: datetime
    updated_at: datetime


class RetainerWithMovements(RetainerView):
    """A retainer and its newest movements; the ledger has all of them."""

    consumptions: list[Movement]
    deposits: list[Movement]


class InvoiceView(View):
    """An invoice; `balanceDue` and `amountPaid` add up to `totalAmount`."""

    id: Id
    owner_id: str | None
    client_id: str
    currency: str
    total_amount: JsonMoney
    balance_due: JsonMoney
    amount_paid: JsonMoney
    status: Literal["open", "partially_paid", "paid"]
    ledger_account: str
    created_at: datetime
    updated_at: datetime


class FundPaymentView(View):
    """A payment of a customer; `entryId` is its entry in the journal once it is completed."""

    id: Id
    owner_id: str | None
    customer_id: str
    amount: JsonMoney
    currency: str
    payment_method: str
    invoice_id: str | None
    status: Literal["pending", "completed"]
    entry_id: str | None
    created_at: datetime
    completed_at: datetime | None


class BankAccountView(View):
    """A bank account of our own."""

    id: Id
    name: str
    account_number: str
    bank_name: str
    currency: str
    available_balance: JsonMoney
    status: Literal["active", "closed"]
    ledger_account: str
    created_at: datetime
    updated_at: datetime


class TransferView(View):
    """A transfer between bank accounts; `entryId` and `cancelEntryId` are its entries in the journal."""

    id: Id
    from_account_id: str
    to_account_id: str
    amount: JsonMoney
    fee: JsonMoney
    currency: str
    description: str | None
    status: Literal["completed", "cancelled"]
    entry_id: str
    cancel_entry_id: str | None
    reason: str | None
    created_at: datetime
    cancelled_at: datetime | None


class PostingView(View):
    """A line of an entry: a positive amount is a debit, a negative one a credit."""

    account: str
    amount: JsonMoney
    balance_after: JsonMoney | None


class EntryView(View):
    """An entry of the journal; its postings sum to zero."""

    id: Id
    at: datetime
    operation: str
    currency: str
    postings: list[PostingView]
    reference: dict[str, str]
    description: str | None
    reverses: str | None


class RetainerAnswer(View):
    """A retainer as it is after the operation."""

    retainer: RetainerView


class RetainerData(View):
    """A retainer with its movements."""

    data: RetainerWithMovements


class InvoiceAnswer(View):
    """An invoice as it is after the operation."""

    invoice: InvoiceView


class PaymentAnswer(View):
    """A payment as it is after the operation."""

    payment: FundPaymentView


class BankAccountAnswer(View):
    """A bank account as it is after the operation."""

    account: BankAccountView


class TransferAnswer(View):
    """A transfer as it is after the operation."""

    transfer: TransferView


class RetainerPage(View):
    """Retainers in the order of their ids."""

    items: list[RetainerView]
    next_cursor: str | None


class InvoicePage(View):
    """Invoices in the order of their ids."""

    items: list[InvoiceView]
    next_cursor: str | None


class FundPaymentPage(View):
    """Payments in the order of their ids."""

    items: list[FundPaymentView]
    next_cursor: str | None


class BankAccountPage(View):
    """Bank accounts in the order of their ids."""

    items: list[BankAccountView]
    next_cursor: str | None


class TransferPage(View):
    """Transfers in the order of their ids."""

    items: list[TransferView]
    next_cursor: str | None


class LedgerPage(View):
    """Entries of the journal, newest first."""

    items: list[EntryView]
    next_cursor: str | None


def show_retainer(account: Document) -> dict[str, Any]:
    """Convert a retainer's account to the JSON of RetainerView."""
    return {
        "_id": chart_of_accounts.id_without_kind(account["_id"]),
        "ownerId": account.get("ownerId"),
        "clientId": account["clientId"],
        "retainerType": account["retainerType"],
        "currency": account["currency"],
        "currentBalance": to_json_number(account["balance"]),
        "status": account["status"],
        **_common(account),
    }


def show_movements(account: str, entries: Sequence[Document]) -> list[dict[str, Any]]:
    """Convert entries to the JSON of Movement, seen from one account."""
    return [_movement(entry, next(p for p in entry["postings"] if p["account"] == account)) for entry in entries]


def show_invoice(account: Document) -> dict[str, Any]:
    """Convert an invoice's account to the JSON of InvoiceView."""
    total, due = account["totalAmount"], account["balance"]
    return {
        "_id": chart_of_accounts.id_without_kind(account["_id"]),
        "ownerId": account.get("ownerId"),
        "clientId": account["clientId"],
        "currency": account["currency"],
        "totalAmount": to_json_number(total),
        "balanceDue": to_json_number(due),
        "amountPaid": to_json_number(total - due),
        "status": "paid" if due == 0 else "open" if due == total else "partially_paid",
        **_common(account),
    }


def show_bank_account(account: Document) -> dict[str, Any]:
    """Convert a bank account to the JSON of BankAccountView."""
    return {
        "_id": chart_of_accounts.id_without_kind(account["_id"]),
        "name": account["name"],
        "accountNumber": account["accountNumber"],
        "bankName": account["bankName"],
        "currency": account["currency"],
        "availableBalance": to_json_number(account["balance"]),
        "status": account["status"],
        **_common(account),
    }


def show_payment(payment: Document) -> dict[str, Any]:
    """Convert a payment to the JSON of FundPaymentView."""
    return {
        "_id": payment["_id"],
        "ownerId": payment.get("ownerId"),
        "customerId": payment["customerId"],
        "amount": to_json_number(payment["amount"]),
        "currency": payment["currency"],
        "paymentMethod": payment["paymentMethod"],
        "invoiceId": payment.get("invoiceId"),
        "status": payment["status"],
        "entryId": payment.get("entryId"),
        "createdAt": to_rfc3339(payment["createdAt"]),
        "completedAt": _moment(payment, "completedAt"),
    }


def show_transfer(transfer: Document) -> dict[str, Any]:
    """Convert a transfer to the JSON of TransferView."""
    return {
        "_id": transfer["_id"],
        "fromAccountId": transfer["fromAccountId"],
        "toAccountId": transfer["toAccountId"],
        "amount": to_json_number(transfer["amount"]),
        "fee": to_json_number(transfer["fee"]),
        "currency": transfer["currency"],
        "description": transfer.get("description"),
        "status": transfer["status"],
        "entryId": transfer["entryId"],
        "cancelEntryId": transfer.get("cancelEntryId"),
        "reason": transfer.get("reason"),
        "createdAt": to_rfc3339(transfer["createdAt"]),
        "cancelledAt": _moment(transfer, "cancelledAt"),
    }


def show_entry(entry: Document) -> dict[str, Any]:
    """Convert a journal entry to the JSON of EntryView."""
    return {
        "_id": entry["_id"],
        "at": to_rfc3339(entry["at"]),
        "operation": entry["operation"],
        "currency": entry["currency"],
        "postings": [_posting(posting) for posting in entry["postings"]],
        "reference": entry["reference"],
        "description": entry.get("description"),
        "reverses": entry.get("reverses"),
    }


def _posting(posting: Mapping[str, Any]) -> dict[str, Any]:
    after = posting.get("balanceAfter")
    return {
        "account": posting["account"],
        "amount": to_json_number(posting["amount"]),
        "balanceAfter": None if after is None else to_json_number(after),
    }


def _movement(entry: Document, posting: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "entryId": entry["_id"],
        "at": to_rfc3339(entry["at"]),
        "operation": entry["operation"],
        "amount": to_json_number(abs(posting["amount"])),
        "balanceAfter": to_json_number(posting["balanceAfter"]),
        "reference": entry["reference"],
        "description": entry.get("description"),
    }


def _common(account: Document) -> dict[str, Any]:
    return {
        "ledgerAccount": account["_id"],
        "createdAt": to_rfc3339(account["createdAt"]),
        "updatedAt": to_rfc3339(account["updatedAt"]),
    }


def _moment(document: Document, field: str) -> str | None:
    return to_rfc3339(document[field]) if field in document else None
