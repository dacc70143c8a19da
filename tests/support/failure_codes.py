"""The codes that tests expect beside the reasons of failures."""

from shared.contracts.failures import FailureCode

_CODES = {
    "Insufficient stock": FailureCode.INSUFFICIENT_STOCK,
    "Unknown product": FailureCode.UNKNOWN_PRODUCT,
    "Price of": FailureCode.WRONG_PRICE,
    "An order can hold one server at most": FailureCode.TOO_MANY_SERVERS,
    "The card was declined": FailureCode.CARD_DECLINED,
    "The card's bank refused the capture": FailureCode.CAPTURE_FAILED,
    "The authorisation has expired": FailureCode.AUTHORIZATION_EXPIRED,
    "Cancelled": FailureCode.CANCELLED_BY_CLIENT,
    "No server provider is configured": FailureCode.PROVIDER_UNAVAILABLE,
    "No turn for package": FailureCode.PROVISIONING_TIMED_OUT,
    "The server could not be bought": FailureCode.PURCHASE_FAILED,
    "Package has no available IPs": FailureCode.PACKAGE_UNAVAILABLE,
    "PROVISIONING BLOCKED": FailureCode.WRONG_ADDRESS,
    "The server was bought but is not ready yet": FailureCode.SERVER_NOT_READY,
}


def code_of(reason: str) -> FailureCode | None:
    """Return the code that belongs to a reason, by how it begins."""
    return next((code for words, code in _CODES.items() if reason.startswith(words)), None)
