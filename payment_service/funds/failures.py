"""Logs operations on funds that were not committed: a refusal by the books at INFO, anything else at WARNING.

A line names the operation, what it was about and the amount; it has no customer and no balance.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from pydantic import BaseModel

from payment_service.funds.payments import COLLECTION as PAYMENTS
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import ACCOUNTS
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.transaction_errors import failure_reason
from payment_service.ledger.unit_of_work import Reference
from shared.errors import RefusalError

_AMOUNTS = ("amount", "totalAmount", "initialAmount", "balance")
"""The fields of request bodies that say how much an operation moves."""

_log = structlog.get_logger(__name__)


@contextmanager
def failures_logged(
    operation: str, touches: Collection[Reference], *, path: str | None = None, body: BaseModel | None = None
) -> Iterator[None]:
    """Log an error that ends this context, which passes through; of what it touches, the line names the accounts."""
    try:
        yield
    except Exception as error:
        log = _log.info if isinstance(error, RefusalError) else _log.warning
        log("transaction failed", **_described(operation, touches, path, body), reason=_reason(error))
        raise


def _described(
    operation: str, touches: Collection[Reference], path: str | None, body: BaseModel | None
) -> dict[str, Any]:
    described: dict[str, Any] = {"operation": operation}
    if path is not None:
        described["path"] = path
    if accounts := sorted(name for each in touches if (name := _name(each))):
        described["accounts"] = accounts
    fields = {} if body is None else body.model_dump(mode="json", by_alias=True)
    if (amount := next((fields[name] for name in _AMOUNTS if fields.get(name) is not None), None)) is not None:
        described["amount"] = amount
    if currency := fields.get("currency"):
        described["currency"] = currency
    return described


def _name(reference: Reference) -> str | None:
    """Return the name of an account or a payment; that of a customer's credit would name the customer."""
    if reference.collection == PAYMENTS:
        return f"payment:{reference.id}"
    if reference.collection != ACCOUNTS or reference.id.startswith(f"{AccountKind.CUSTOMER}:"):
        return None
    return reference.id


def _reason(error: Exception) -> str:
    if isinstance(error, LedgerRefusalError):
        return error.reason
    return "key_reused" if isinstance(error, RefusalError) else failure_reason(error)
