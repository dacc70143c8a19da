"""The words with which payments are refused, and the failure code of each. Pure.

Records have the words alone, so a repeated answer has the same code, also for a record of an earlier release. A card
gateway may give words of its own: those that are not in the table mean that the card was declined.
"""

from shared.contracts.failures import FailureCode

DECLINED = "The card was declined"
CLOSED = "The payment was cancelled"
NO_CARD = "The order names no card to charge"
CARD_UNUSABLE = "The card cannot be charged: it is unknown or was used before"
NEEDS_CARDHOLDER = "The card asks for its holder's authentication, which an order cannot wait for"
EXPIRED = "The authorisation has expired"

NO_RETAINER = "No retainer is named to pay from"
INSUFFICIENT_BALANCE = "Insufficient balance"
KEPT_IN = "is kept in"
"""Within the words about a retainer in another currency."""

_OF_CARDS = {
    CLOSED: FailureCode.PAYMENT_CANCELLED,
    NO_CARD: FailureCode.CARD_MISSING,
    CARD_UNUSABLE: FailureCode.CARD_UNUSABLE,
    NEEDS_CARDHOLDER: FailureCode.CARDHOLDER_REQUIRED,
}
_OF_CAPTURES = {CLOSED: FailureCode.PAYMENT_CANCELLED, EXPIRED: FailureCode.AUTHORIZATION_EXPIRED}


def code_of_charge(reason: str, *, by_card: bool) -> FailureCode:
    """Return the code of a charge, of a card or a retainer, that was refused with these words."""
    if not reason:
        return FailureCode.PAYMENT_REFUSED
    if by_card:
        return _OF_CARDS.get(reason, FailureCode.CARD_DECLINED)
    if reason.startswith(INSUFFICIENT_BALANCE):
        return FailureCode.INSUFFICIENT_BALANCE
    return FailureCode.RETAINER_CURRENCY if f" {KEPT_IN} " in reason else FailureCode.RETAINER_UNAVAILABLE


def code_of_capture(reason: str) -> FailureCode:
    """Return the code of a capture that was refused with these words."""
    return _OF_CAPTURES.get(reason, FailureCode.CAPTURE_FAILED)
