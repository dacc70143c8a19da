"""Refusals: operations that the books do not allow. They are answers, not faults: never retried, nothing changes."""

from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar

from shared.errors import RefusalError
from shared.money import require_whole


class Reason(StrEnum):
    """Why the books refuse an operation, as metrics and log lines name it."""

    INSUFFICIENT_BALANCE = "insufficient_balance"
    OVERPAYMENT = "overpayment"
    ALREADY_COMPLETED = "already_completed"
    ALREADY_CANCELLED = "already_cancelled"
    MISSING_RECORD = "missing_record"
    WRONG_STATE = "wrong_state"
    MISMATCH = "mismatch"
    OTHER = "other"


class LedgerRefusalError(RefusalError):
    """The books do not allow the operation.

    `detail` is for people, `status` is the HTTP status, `field` names the invalid field of the request, if there is
    one.
    """

    status = HTTPStatus.BAD_REQUEST
    reason: ClassVar[Reason] = Reason.OTHER

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class MissingRecordError(LedgerRefusalError):
    """Something that the operation names does not exist."""

    status = HTTPStatus.NOT_FOUND
    reason = Reason.MISSING_RECORD


class WrongStateError(LedgerRefusalError):
    """Something that the operation names is in the wrong state: inactive, closed, not completed yet."""

    status = HTTPStatus.CONFLICT
    reason = Reason.WRONG_STATE


class MismatchError(LedgerRefusalError):
    """The things that the operation names do not fit together: two currencies, another customer's payment."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    reason = Reason.MISMATCH


class InsufficientBalanceError(LedgerRefusalError):
    """The account holds less than the operation takes from it; both figures are minor units."""

    reason = Reason.INSUFFICIENT_BALANCE

    def __init__(self, detail: str, *, balance: int, amount: int) -> None:
        super().__init__(detail)
        self.balance = balance
        self.amount = amount


class OverpaymentError(InsufficientBalanceError):
    """More would be paid than is due on the invoice."""

    reason = Reason.OVERPAYMENT


class AlreadyCompletedError(LedgerRefusalError):
    """The payment was completed before, by another request."""

    reason = Reason.ALREADY_COMPLETED


class AlreadyCancelledError(LedgerRefusalError):
    """The transfer was cancelled before, by another request."""

    reason = Reason.ALREADY_CANCELLED


def require_amount_of(currency: str, amount: int) -> None:
    """Raise MismatchError if an amount in minor units has decimals that its currency does not have."""
    try:
        require_whole(currency, {"amount": amount})
    except ValueError as error:
        raise MismatchError(str(error), field="amount") from None
