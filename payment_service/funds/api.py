"""The routes of the funds API: retainers, invoices, payments, bank accounts, transfers and the ledger.

The docstrings of the routes appear in the OpenAPI document.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from payment_service.funds import requests, views
from payment_service.funds.bank import TRANSFERS
from payment_service.funds.failures import failures_logged
from payment_service.funds.funds import Funds
from payment_service.funds.idempotency import (
    IdempotencyKeyReusedError,
    IdempotentRequest,
    StoredResponse,
    refusal_response,
)
from payment_service.funds.payments import COLLECTION as PAYMENTS
from payment_service.funds.payments import COMPLETED, credited_account
from payment_service.funds.requests import DEFAULT_CURRENCY
from payment_service.ledger import chart_of_accounts
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.journal_entries import LedgerOperation
from payment_service.ledger.ledger import ENTRIES, references
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.transactions import Work
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import PERSON_FIELD, Principal, Visible
from shared.cursors import time_key
from shared.database import Document
from shared.http import (
    REPLAYED,
    ProblemError,
    invalid,
    json_response,
    key_reused,
    located,
    new_router,
    not_found,
)
from shared.lean_route import LeanRoute
from shared.openapi import PROBLEM_JSON, documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_id, after_time, page_response
from shared.problems import BOOKS_REFUSE, CONFLICT, INSUFFICIENT_BALANCE, NOT_FOUND
from shared.request_id import current_request_id

NEWEST_MOVEMENTS = 100
"""The number of consumptions, and of deposits, shown with a retainer."""

IdParameter = Annotated[str, Path(min_length=1, max_length=200)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and request get the first answer again; each owner has keys of its own",
    ),
]
_REFUSALS = documented(BOOKS_REFUSE, INSUFFICIENT_BALANCE, NOT_FOUND, CONFLICT)


def create_router(funds: Funds) -> APIRouter:
    """Create the routes over the given funds."""
    router = new_router("payments", "funds", route_class=LeanRoute)
    _add_retainers(router, funds)
    _add_invoices(router, funds)
    _add_payments(router, funds)
    _add_bank_accounts(router, funds)
    _add_transfers(router, funds)
    _add_ledger(router, funds)
    return router


def _add_retainers(router: APIRouter, funds: Funds) -> None:
    _add_opening_of_retainers(router, funds)

    @router.get("/api/retainers", response_model=views.RetainerPage)
    @requires(Permission.FUNDS_READ)
    async def list_retainers(caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Retainers in the order of their ids."""
        visible = _visible(caller, person="clientId")
        return await _accounts(funds, AccountKind.RETAINER, views.show_retainer, limit, cursor, visible)

    @router.get("/api/retainers/{retainer_id}", response_model=views.RetainerData)
    @requires(Permission.FUNDS_READ)
    async def get_retainer(retainer_id: IdParameter, caller: Caller) -> Response:
        """A retainer, with its newest consumptions and deposits."""
        account = chart_of_accounts.retainer(retainer_id)
        shown = views.show_retainer(
            await _found(funds.ledger.get_visible(account, visible=_visible(caller, person="clientId")))
        )
        for name, increasing in (("consumptions", False), ("deposits", True)):
            entries = await funds.ledger.movements(account, increasing=increasing, limit=NEWEST_MOVEMENTS)
            shown[name] = views.show_movements(account, entries)
        return json_response({"data": shown})

    @router.post("/api/retainers/{retainer_id}/consume", response_model=views.RetainerAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def consume_retainer(
        request: HttpRequest,
        caller: Caller,
        retainer_id: IdParameter,
        body: requests.Consumption,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Take from a retainer: as earned, or to pay an invoice."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            fields = body.model_dump(by_alias=False) | {"amount": body.amount}
            account = await funds.retainers.consume(unit, retainer_id, **fields)
            return StoredResponse(200, {"retainer": views.show_retainer(account)})

        paid = [chart_of_accounts.invoice(body.invoice_id)] if body.invoice_id else []
        touches = references([chart_of_accounts.retainer(retainer_id), *paid])
        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.RETAINER_CONSUMED, work, touches
        )

    @router.post("/api/retainers/{retainer_id}/replenish", response_model=views.RetainerAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def replenish_retainer(
        request: HttpRequest,
        caller: Caller,
        retainer_id: IdParameter,
        body: requests.Replenishment,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Add to a retainer: from outside, or from the credit that a completed payment gave the client."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            fields = body.model_dump(by_alias=False) | {"amount": body.amount}
            account = await funds.retainers.replenish(unit, retainer_id, **fields)
            return StoredResponse(200, {"retainer": views.show_retainer(account)})

        touches = [
            *references([chart_of_accounts.retainer(retainer_id)]),
            *await _payment_and_account(funds, body.payment_id),
        ]
        return await _run_once(
            funds,
            _identify(request, caller, idempotency_key, body),
            LedgerOperation.RETAINER_REPLENISHED,
            work,
            touches,
        )


def _add_opening_of_retainers(router: APIRouter, funds: Funds) -> None:
    @router.post("/api/retainers", status_code=201, response_model=views.RetainerAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def open_retainer(
        request: HttpRequest, caller: Caller, body: requests.NewRetainer, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Open a retainer with what the client has paid in advance."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            account = await funds.retainers.open(
                unit,
                owner_id=caller.owner,
                client_id=body.client_id,
                retainer_type=body.retainer_type,
                amount=body.initial_amount,
                currency=body.currency,
            )
            return StoredResponse(201, {"retainer": views.show_retainer(account)})

        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.RETAINER_OPENED, work
        )

    @router.patch("/api/retainers/{retainer_id}", response_model=views.RetainerAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def change_retainer(retainer_id: IdParameter, body: requests.RetainerChange) -> Response:
        """Make a retainer active or inactive."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            account = await funds.retainers.set_status(unit, retainer_id, body.status)
            return StoredResponse(200, {"retainer": views.show_retainer(account)})

        return await _run(funds, "retainer.status", work, references([chart_of_accounts.retainer(retainer_id)]))


def _add_invoices(router: APIRouter, funds: Funds) -> None:
    @router.post("/api/invoices", status_code=201, response_model=views.InvoiceAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def issue_invoice(
        request: HttpRequest, caller: Caller, body: requests.NewInvoice, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Issue an invoice, all of it due."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            account = await funds.invoices.issue(
                unit,
                owner_id=caller.owner,
                client_id=body.client_id,
                amount=body.total_amount,
                currency=body.currency,
            )
            return StoredResponse(201, {"invoice": views.show_invoice(account)})

        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.INVOICE_ISSUED, work
        )

    @router.get("/api/invoices", response_model=views.InvoicePage)
    @requires(Permission.FUNDS_READ)
    async def list_invoices(caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Invoices in the order of their ids."""
        visible = _visible(caller, person="clientId")
        return await _accounts(funds, AccountKind.INVOICE, views.show_invoice, limit, cursor, visible)

    @router.get("/api/invoices/{invoice_id}", response_model=views.InvoiceAnswer)
    @requires(Permission.FUNDS_READ)
    async def get_invoice(invoice_id: IdParameter, caller: Caller) -> Response:
        """An invoice, with what is paid and what is due."""
        visible = _visible(caller, person="clientId")
        account = await _found(funds.ledger.get_visible(chart_of_accounts.invoice(invoice_id), visible=visible))
        return json_response({"invoice": views.show_invoice(account)})

    @router.post("/api/invoices/{invoice_id}/payments", response_model=views.InvoiceAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def pay_invoice(
        request: HttpRequest,
        caller: Caller,
        invoice_id: IdParameter,
        body: requests.InvoicePayment,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Pay an invoice, or a part of it, from outside."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            fields = body.model_dump(by_alias=False) | {"amount": body.amount}
            account = await funds.invoices.pay(unit, invoice_id, **fields)
            return StoredResponse(200, {"invoice": views.show_invoice(account)})

        touches = references([chart_of_accounts.invoice(invoice_id)])
        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.INVOICE_PAID, work, touches
        )


def _add_payments(router: APIRouter, funds: Funds) -> None:
    @router.post("/api/payments", status_code=201, response_model=views.PaymentAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def create_payment(
        request: HttpRequest, caller: Caller, body: requests.NewPayment, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Record a payment; with `status` completed it is completed at once."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            payment = await funds.payments.create(
                unit,
                owner_id=caller.owner,
                customer_id=body.customer_id,
                amount=body.amount,
                payment_method=body.payment_method,
                currency=body.currency,
                invoice_id=body.invoice_id,
                default_currency=DEFAULT_CURRENCY,
            )
            if body.status == COMPLETED:
                payment = await funds.payments.complete(unit, payment["_id"])
            return StoredResponse(201, {"payment": views.show_payment(payment)})

        if body.invoice_id:
            credited = chart_of_accounts.invoice(body.invoice_id)
        else:
            credited = chart_of_accounts.customer(body.customer_id, body.currency or DEFAULT_CURRENCY)
        operation = LedgerOperation.PAYMENT_COMPLETED if body.status == COMPLETED else "payment.created"
        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), operation, work, references([credited])
        )

    @router.get("/api/payments", response_model=views.FundPaymentPage)
    @requires(Permission.FUNDS_READ)
    async def list_payments(caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Payments in the order of their ids."""
        visible = _visible(caller, person="customerId")
        page = await funds.payments.page(after=after_id(cursor), limit=limit, visible=visible)
        return _page(page, views.show_payment, limit)

    @router.get("/api/payments/{payment_id}", response_model=views.PaymentAnswer)
    @requires(Permission.FUNDS_READ)
    async def get_payment(payment_id: IdParameter, caller: Caller) -> Response:
        """One payment."""
        visible = _visible(caller, person="customerId")
        payment = await _found(funds.payments.get(payment_id, visible=visible))
        return json_response({"payment": views.show_payment(payment)})

    @router.post("/api/payments/{payment_id}/complete", response_model=views.PaymentAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def complete_payment(
        request: HttpRequest, caller: Caller, payment_id: IdParameter, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Complete a pending payment, once: it pays its invoice, or becomes the customer's credit."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            payment = await funds.payments.complete(unit, payment_id)
            return StoredResponse(200, {"payment": views.show_payment(payment)})

        touches = await _payment_and_account(funds, payment_id)
        return await _run_once(
            funds, _identify(request, caller, idempotency_key), LedgerOperation.PAYMENT_COMPLETED, work, touches
        )


def _add_bank_accounts(router: APIRouter, funds: Funds) -> None:
    @router.post("/api/bank-accounts", status_code=201, response_model=views.BankAccountAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def open_bank_account(
        request: HttpRequest, caller: Caller, body: requests.NewBankAccount, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Enter a bank account with what it holds."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            fields = body.model_dump(by_alias=False) | {"balance": body.balance}
            account = await funds.bank.open(unit, **fields)
            return StoredResponse(201, {"account": views.show_bank_account(account)})

        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.BANK_OPENED, work
        )

    @router.get("/api/bank-accounts", response_model=views.BankAccountPage)
    @requires(Permission.FUNDS_READ)
    async def list_bank_accounts(
        caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None
    ) -> Response:
        """Bank accounts in the order of their ids."""
        visible = _visible(caller)
        return await _accounts(funds, AccountKind.BANK, views.show_bank_account, limit, cursor, visible)

    @router.get("/api/bank-accounts/{account_id}", response_model=views.BankAccountAnswer)
    @requires(Permission.FUNDS_READ)
    async def get_bank_account(account_id: IdParameter, caller: Caller) -> Response:
        """One bank account."""
        account = await _found(funds.ledger.get_visible(chart_of_accounts.bank(account_id), visible=_visible(caller)))
        return json_response({"account": views.show_bank_account(account)})

    @router.patch("/api/bank-accounts/{account_id}", response_model=views.BankAccountAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def change_bank_account(account_id: IdParameter, body: requests.BankAccountChange) -> Response:
        """Close a bank account that is empty, or open it again."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            account = await funds.bank.set_status(unit, account_id, body.status)
            return StoredResponse(200, {"account": views.show_bank_account(account)})

        return await _run(funds, "bank.status", work, references([chart_of_accounts.bank(account_id)]))


def _add_transfers(router: APIRouter, funds: Funds) -> None:
    @router.post("/api/bank-transfers", status_code=201, response_model=views.TransferAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def transfer_money(
        request: HttpRequest, caller: Caller, body: requests.NewTransfer, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Move money between two bank accounts."""

        async def work(unit: UnitOfWork) -> StoredResponse:
            transfer = await funds.bank.transfer(
                unit,
                from_id=body.from_account_id,
                to_id=body.to_account_id,
                amount=body.amount,
                fee=body.fee,
                description=body.description,
            )
            return StoredResponse(201, {"transfer": views.show_transfer(transfer)})

        ends = (body.from_account_id, body.to_account_id)
        touches = references(chart_of_accounts.bank(end) for end in ends)
        return await _run_once(
            funds, _identify(request, caller, idempotency_key, body), LedgerOperation.TRANSFER_MADE, work, touches
        )

    @router.get("/api/bank-transfers", response_model=views.TransferPage)
    @requires(Permission.FUNDS_READ)
    async def list_transfers(caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Transfers in the order of their ids."""
        page = await funds.bank.page(after=after_id(cursor), limit=limit, visible=_visible(caller))
        return _page(page, views.show_transfer, limit)

    @router.get("/api/bank-transfers/{transfer_id}", response_model=views.TransferAnswer)
    @requires(Permission.FUNDS_READ)
    async def get_transfer(transfer_id: IdParameter, caller: Caller) -> Response:
        """One transfer."""
        return json_response(
            {"transfer": views.show_transfer(await _found(funds.bank.get(transfer_id, visible=_visible(caller))))}
        )

    @router.post("/api/bank-transfers/{transfer_id}/cancel", response_model=views.TransferAnswer, responses=_REFUSALS)
    @requires(Permission.FUNDS_WRITE)
    async def cancel_transfer(
        request: HttpRequest,
        caller: Caller,
        transfer_id: IdParameter,
        body: requests.TransferCancellation | None = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Reverse a transfer, fee included, once; refused if the receiver has spent the money."""
        cancellation = body or requests.TransferCancellation()

        async def work(unit: UnitOfWork) -> StoredResponse:
            transfer = await funds.bank.cancel(unit, transfer_id, cancellation.reason)
            return StoredResponse(200, {"transfer": views.show_transfer(transfer)})

        touches = await _transfer_and_accounts(funds, transfer_id)
        sent = _identify(request, caller, idempotency_key, cancellation)
        return await _run_once(funds, sent, LedgerOperation.TRANSFER_CANCELLED, work, touches)


def _add_ledger(router: APIRouter, funds: Funds) -> None:
    @router.get("/api/ledger", response_model=views.LedgerPage)
    @requires(Permission.FUNDS_READ)
    async def list_ledger_entries(
        account: Annotated[
            str | None, Query(min_length=1, max_length=300, description="A `ledgerAccount`, or system:revenue:USD …")
        ] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
        *,
        caller: Caller,
    ) -> Response:
        """Entries of the journal with their postings, newest first; of all accounts, or of one."""
        if not caller.reaches_all(Permission.FUNDS_READ):
            await _require_own(funds, caller, account)
        entries = await funds.ledger.statement(account, before=after_time(cursor), limit=limit)
        return page_response(
            entries, views.show_entry, key=lambda entry: time_key(entry["at"], entry["_id"]), limit=limit
        )


def _visible(caller: Principal, *, person: str = PERSON_FIELD) -> Visible:
    return caller.visible(Permission.FUNDS_READ, person=person)


async def _require_own(funds: Funds, caller: Principal, account: str | None) -> None:
    """Raise a problem unless the account is one of the caller's: 422 if none is named, 404 for all others."""
    if account is None:
        raise invalid(("account", "is required: you can list the entries of your own accounts only"))
    if await funds.ledger.find(account) is None or not chart_of_accounts.has_document(account):
        raise not_found(f"Account {account}")
    try:
        await funds.ledger.get_visible(account, visible=_visible(caller, person="clientId"))
    except LedgerRefusalError:
        raise not_found(f"Account {account}") from None


async def _run_once(
    funds: Funds,
    request: IdempotentRequest,
    operation: str,
    work: Work[StoredResponse],
    touches: Collection[Reference] = (),
) -> Response:
    """Run the operation once under its key and return the response, also for a refusal."""
    try:
        return _respond(await funds.idempotency.run(request, operation, work, touches=touches), request.path)
    except LedgerRefusalError as refusal:
        return _respond(refusal_response(refusal))
    except IdempotencyKeyReusedError:
        raise key_reused("The Idempotency-Key was used before for another request; use a new one") from None


async def _run(funds: Funds, operation: str, work: Work[StoredResponse], touches: Collection[Reference]) -> Response:
    try:
        with failures_logged(operation, touches):
            return _respond(await funds.transactions.run(operation, work, touches))
    except LedgerRefusalError as refusal:
        return _respond(refusal_response(refusal))


def _respond(stored: StoredResponse, path: str = "") -> Response:
    headers = dict(REPLAYED) if stored.replayed else {}
    if stored.status == HTTPStatus.CREATED:
        (created,) = stored.body.values()
        headers |= located(*path.strip("/").split("/"), created["_id"])
    if stored.status < HTTPStatus.BAD_REQUEST:
        return json_response(stored.body, stored.status, headers)
    # A stored refusal may be of an earlier request, and of an earlier release.
    response = json_response({**stored.body, "requestId": current_request_id()}, stored.status, headers)
    response.headers["content-type"] = PROBLEM_JSON
    return response


def _identify(
    request: HttpRequest, caller: Principal, key: str | None, body: BaseModel | None = None
) -> IdempotentRequest:
    return IdempotentRequest(key, request.method, request.url.path, body, caller.owner)


async def _found(reading: Awaitable[Document]) -> Document:
    try:
        return await reading
    except LedgerRefusalError as refusal:
        raise ProblemError(refusal.status, refusal.detail) from None


async def _payment_and_account(funds: Funds, payment_id: str | None) -> list[Reference]:
    """Return the places of a payment and of the account that it credits; the transaction checks the payment itself."""
    payment = await funds.payments.find(payment_id) if payment_id else None
    if payment is None:
        return []
    return [Reference(PAYMENTS, payment["_id"]), *references([credited_account(payment)])]


async def _transfer_and_accounts(funds: Funds, transfer_id: str) -> list[Reference]:
    """Return the places of a transfer, its entry and its accounts; the transaction checks the transfer itself."""
    transfer = await funds.bank.find(transfer_id)
    if transfer is None:
        return []
    ends = (transfer["fromAccountId"], transfer["toAccountId"])
    return [
        Reference(TRANSFERS, transfer_id),
        Reference(ENTRIES, transfer["entryId"]),
        *references(chart_of_accounts.bank(end) for end in ends),
    ]


async def _accounts(
    funds: Funds,
    kind: AccountKind,
    show: Callable[[Document], dict[str, Any]],
    limit: int,
    cursor: str | None,
    visible: Visible,
) -> Response:
    return _page(await funds.ledger.page(kind, after=after_id(cursor), limit=limit, visible=visible), show, limit)


def _page(documents: Sequence[Document], show: Callable[[Document], dict[str, Any]], limit: int) -> Response:
    return page_response(documents, show, key=lambda document: [document["_id"]], limit=limit)
