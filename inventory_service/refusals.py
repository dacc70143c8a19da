"""The failure code of a refusal, by the words in which it is recorded. Pure.

The record has the reason alone, so a repeated answer has the same code, also for a record of an earlier release.
"""

from shared.contracts.failures import FailureCode

_OFF_SALE = " is not on sale"
_BY_BEGINNING = (
    ("Insufficient stock", FailureCode.INSUFFICIENT_STOCK),
    ("Unknown product", FailureCode.UNKNOWN_PRODUCT),
    ("Price of", FailureCode.WRONG_PRICE),
    ("No price", FailureCode.NO_PRICE),
    ("An order can hold one server", FailureCode.TOO_MANY_SERVERS),
    ("No delivery slot", FailureCode.SLOT_FULL),
    ("Delivery ", FailureCode.SLOT_UNAVAILABLE),
    ("There is no delivery", FailureCode.SLOT_UNAVAILABLE),
)
"""The beginning of a refusal's words, and its code; tests/unit/test_failure_codes.py makes every refusal there is."""

REFUSALS = (*dict.fromkeys(code for _, code in _BY_BEGINNING), FailureCode.NOT_ON_SALE, FailureCode.STOCK_REFUSED)
"""The codes that inventory sends."""


def code_of(reason: str) -> FailureCode:
    """Return the code of a refusal with this reason."""
    if reason.endswith(_OFF_SALE):
        return FailureCode.NOT_ON_SALE
    if reason.startswith("Delivery ") and " has no room for " in reason:
        return FailureCode.SLOT_FULL
    return next((code for beginning, code in _BY_BEGINNING if reason.startswith(beginning)), FailureCode.STOCK_REFUSED)
