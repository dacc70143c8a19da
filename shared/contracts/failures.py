"""The codes of failures: why an order was cancelled or has failed, for programs. The prose beside them is for people.

The service that refuses sets the code in its message. Codes are stable: a new one may be added, none changes its
meaning. Programs that meet a code they do not know treat it like the general one of its group, or read the status.
docs/problems.md lists all of them.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""A failure code in a message: any word of that form, because a newer sender may know more codes."""


class FailureCode(StrEnum):
    """Why an order did not go through. More codes may be added."""

    INSUFFICIENT_STOCK = "insufficient_stock"
    UNKNOWN_PRODUCT = "unknown_product"
    NOT_ON_SALE = "not_on_sale"
    WRONG_PRICE = "wrong_price"
    NO_PRICE = "no_price"
    TOO_MANY_SERVERS = "too_many_servers"
    SLOT_FULL = "slot_full"
    SLOT_UNAVAILABLE = "slot_unavailable"
    STOCK_REFUSED = "stock_refused"
    CARD_DECLINED = "card_declined"
    CARD_UNUSABLE = "card_unusable"
    CARD_MISSING = "card_missing"
    CARDHOLDER_REQUIRED = "cardholder_required"
    AUTHORIZATION_EXPIRED = "authorization_expired"
    RETAINER_UNAVAILABLE = "retainer_unavailable"
    RETAINER_CURRENCY = "retainer_currency"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    PAYMENT_CANCELLED = "payment_cancelled"
    PAYMENT_REFUSED = "payment_refused"
    CAPTURE_FAILED = "capture_failed"
    PACKAGE_UNAVAILABLE = "package_unavailable"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PURCHASE_FAILED = "purchase_failed"
    PROVISIONING_TIMED_OUT = "provisioning_timed_out"
    SERVER_NOT_READY = "server_not_ready"
    WRONG_ADDRESS = "wrong_address"
    PROVISIONING_FAILED = "provisioning_failed"
    CANCELLED_BY_CLIENT = "cancelled_by_client"
    TIMED_OUT = "timed_out"
    RETURNED_EARLY = "returned_early"
    OTHER = "other"

    @property
    def meaning(self) -> str:
        """One sentence about it, for people."""
        return _MEANINGS[self]


_MEANINGS = {
    FailureCode.INSUFFICIENT_STOCK: "Less is free than the order asks for",
    FailureCode.UNKNOWN_PRODUCT: "A product does not exist",
    FailureCode.NOT_ON_SALE: "A product is not on sale",
    FailureCode.WRONG_PRICE: "The order states another price than the product has",
    FailureCode.NO_PRICE: "A product has no price, and the caller may not name one",
    FailureCode.TOO_MANY_SERVERS: "The order asks for more than one server",
    FailureCode.SLOT_FULL: "No delivery slot that was asked for has room",
    FailureCode.SLOT_UNAVAILABLE: "The delivery slot does not exist, or cannot be booked any more or yet",
    FailureCode.STOCK_REFUSED: "The stock was refused for another reason",
    FailureCode.CARD_DECLINED: "The card was declined",
    FailureCode.CARD_UNUSABLE: "The card is unknown, or cannot be used again",
    FailureCode.CARD_MISSING: "The order names no card",
    FailureCode.CARDHOLDER_REQUIRED: "The card asks for its holder, which an order cannot wait for",
    FailureCode.AUTHORIZATION_EXPIRED: "The authorisation expired before the money was captured",
    FailureCode.RETAINER_UNAVAILABLE: "The retainer is not named, does not exist, or is not active",
    FailureCode.RETAINER_CURRENCY: "The retainer is kept in another currency",
    FailureCode.INSUFFICIENT_BALANCE: "The retainer holds less than the order costs",
    FailureCode.PAYMENT_CANCELLED: "The payment was cancelled before it was made",
    FailureCode.PAYMENT_REFUSED: "The payment was refused for another reason",
    FailureCode.CAPTURE_FAILED: "The authorised money could not be captured; it can be tried again",
    FailureCode.PACKAGE_UNAVAILABLE: "The package has no free address, is not offered, or is disabled",
    FailureCode.PROVIDER_UNAVAILABLE: "No server provider is configured",
    FailureCode.PURCHASE_FAILED: "The provider sold no server, in several attempts",
    FailureCode.PROVISIONING_TIMED_OUT: "The order did not get its turn at the provider in time",
    FailureCode.SERVER_NOT_READY: "The server was bought, but was not ready in time",
    FailureCode.WRONG_ADDRESS: "The provider assigned an address that is not the order's",
    FailureCode.PROVISIONING_FAILED: "The server could not be provided for another reason",
    FailureCode.CANCELLED_BY_CLIENT: "The client, or staff, cancelled the order",
    FailureCode.TIMED_OUT: "Stock or payment did not answer in time",
    FailureCode.RETURNED_EARLY: "Stock or money was returned before the order was confirmed",
    FailureCode.OTHER: "An order of an earlier release, whose reason is known in words only",
}
