"""Refusals: answers of the books that say no. They are not faults, are never retried, and leave nothing changed."""

from http import HTTPStatus

from shared.money import require_whole


class RefusedError(Exception):
    """The books do not allow the operation.

    `detail` is for the person who reads it, `status` what HTTP answers, `field` the request's field that is to blame,
    if one is.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class UnknownError(RefusedError):
    """Something that the operation names does not exist."""

    status = HTTPStatus.NOT_FOUND


class StateError(RefusedError):
    """What the operation names is in a state that does not allow it: inactive, closed, not completed yet."""

    status = HTTPStatus.CONFLICT


class UnfitError(RefusedError):
    """What the operation names does not go together: two currencies, another customer's payment."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


def require_amount_of(currency: str, amount: int) -> None:
    """Raise UnfitError if an amount, in minor units, has decimals and its currency has none."""
    try:
        require_whole(currency, {"amount": amount})
    except ValueError as error:
        raise UnfitError(str(error), field="amount") from None


class InsufficientBalanceError(RefusedError):
    """An account holds less than the operation takes from it; both in minor units."""

    def __init__(self, detail: str, *, balance: int, amount: int) -> None:
        super().__init__(detail)
        self.balance = balance
        self.amount = amount
