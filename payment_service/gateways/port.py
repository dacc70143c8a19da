"""The interface of a payment gateway, and the outcomes of its calls.

    charge   → Charged | Authorized | Declined   a repeated key returns the first outcome and never charges again;
                                                 a refund closes the key
    look_up  → Charged | Authorized | Declined | None
    capture  → Charged | CaptureRefused          takes what was authorised, once
    refund   → Refunded | NothingCharged
    refund_part → Refunded | RefundRefused   once per refund id

Every call may raise GatewayTimeoutError. Its outcome is then unknown and must be looked up, never guessed.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from shared.errors import ExternalSystemError


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge: `key` is the idempotency key, `amount` is in minor units.

    Without `capture` the money is only authorised: reserved on the card, for a later call of `Gateway.capture`.
    `opened_at` is the time at which the payment was recorded. It tells an order from a deleted one with the same id:
    a client may reuse its `Idempotency-Key` after a cleanup, and the gateway's memory of the old order must not count.
    """

    key: str
    amount: int
    currency: str
    token: str | None
    opened_at: datetime
    capture: bool = True


@dataclass(frozen=True, slots=True)
class Charged:
    """The money was taken."""

    charge_id: str


@dataclass(frozen=True, slots=True)
class Authorized:
    """The money is reserved on the card; it can be captured until the authorisation expires."""

    charge_id: str


@dataclass(frozen=True, slots=True)
class CaptureRefused:
    """The authorised money was not taken by this call; `reason` is for people. A later call may succeed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Declined:
    """Nothing was taken, and nothing ever will be under this key; `reason` is for the customer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refunded:
    """The money was returned."""

    charge_id: str


@dataclass(frozen=True, slots=True)
class RefundRefused:
    """Nothing was returned, and nothing ever will be under this refund's id; `reason` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class NothingCharged:
    """Nothing was taken under the key; `reason` says why a charge was declined, None if none ever arrived."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """The gateway did not answer; `why` is for the log."""

    why: str


@dataclass(frozen=True, slots=True)
class HeldCharge:
    """A charge that holds money, as the gateway lists it; `key` is the idempotency key."""

    key: str
    charge_id: str


class GatewayTimeoutError(ExternalSystemError):
    """The gateway did not answer: it may or may not have carried out the call."""


class GatewayMisconfiguredError(GatewayTimeoutError):
    """The gateway rejects our configuration, such as a wrong key, and says nothing about the payment.

    The outcome is as unknown as after a timeout; it is looked up once an operator has corrected the settings.
    """


class GatewayKeyReusedError(ExternalSystemError):
    """The idempotency key was used before for another amount or currency."""


class Gateway(Protocol):
    """A payment gateway whose calls may be repeated under the same key, by any process and at any time."""

    async def charge(self, request: ChargeRequest) -> Charged | Authorized | Declined:
        """Take the money, or authorise it, once per key.

        Raises GatewayTimeoutError if the outcome is unknown, and GatewayKeyReusedError if the key belongs to another
        charge.
        """

    async def look_up(self, request: ChargeRequest) -> Charged | Authorized | Declined | None:
        """Return the outcome of the request, None if it never arrived. Raises the same errors as `charge`."""

    async def capture(self, request: ChargeRequest) -> Charged | CaptureRefused:
        """Take the money that was authorised under the key; repeated, it returns the same charge.

        Raises GatewayTimeoutError if the outcome is unknown.
        """

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        """Refund all that is left of the charge, or void its authorisation, once per key.

        Raises GatewayTimeoutError if the outcome is unknown. What was only authorised counts as never taken.

        An unknown key is closed: a charge that arrives later is declined. (The adapter of a gateway that cannot close
        a key charges and refunds it.)
        """

    async def refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        """Return a part of a charge, once per refund id, and never more than is left of it.

        Raises GatewayTimeoutError if the outcome is unknown.
        """
