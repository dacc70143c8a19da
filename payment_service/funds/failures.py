"""Logs operations on funds that were not committed: a refusal by the books at INFO, anything else at WARNING.

A line names the operation, what it was about and the amount; it has no customer and no balance.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.refusals import LedgerRefusalError
from payment_service.ledger.transactions import failure_reason
from shared.errors import RefusalError

_AMOUNTS = ("amount", "totalAmount", "initialAmount", "balance")
"""The fields of request bodies that say how much an operation moves."""

_log = structlog.get_logger(__name__)


@contextmanager
def failures_logged(
    operation: str, keys: Collection[str], *, path: str | None = None, body: Any = None
) -> Iterator[None]:
    """Log an error that ends this context, which passes through; `keys` are the accounts, the rest is the request's."""
    try:
        yield
    except Exception as error:
        log = _log.info if isinstance(error, RefusalError) else _log.warning
        log("transaction failed", **_described(operation, keys, path, body), reason=_reason(error))
        raise


def _described(operation: str, keys: Collection[str], path: str | None, body: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"operation": operation}
    if path is not None:
        described["path"] = path
    if accounts := sorted(key for key in keys if not key.startswith(f"{AccountKind.CUSTOMER}:")):
        described["accounts"] = accounts
    fields = body if isinstance(body, dict) else {}
    if (amount := next((fields[name] for name in _AMOUNTS if fields.get(name) is not None), None)) is not None:
        described["amount"] = amount
    if currency := fields.get("currency"):
        described["currency"] = currency
    return described


def _reason(error: Exception) -> str:
    if isinstance(error, LedgerRefusalError):
        return error.reason
    return "key_reused" if isinstance(error, RefusalError) else failure_reason(error)
