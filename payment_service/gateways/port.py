"""What the service asks of a payment gateway, and what may come of it.

    charge   → Charged | Declined       a repeated key gives the first outcome again and never a second charge;
                                        once it was refunded, the key is closed
    look_up  → Charged | Declined | None
    refund   → Refunded | NothingCharged

Every call may raise GatewayTimeoutError: what became of it is then not known, and nobody may guess.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge: `key` is the idempotency key, `amount` is in minor units.

    `opened_at` is when the payment was recorded. It tells an order from a deleted one of the same id, whose client
    sends the same `Idempotency-Key` again after a cleanup: what the gateway remembers of that one does not count.
    """

    key: str
    amount: int
    currency: str
    token: str | None
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Charged:
    """The money was taken."""

    charge_id: str


@dataclass(frozen=True, slots=True)
class Declined:
    """Nothing was taken, and nothing will be under this key; `reason` is for the customer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refunded:
    """What was taken is returned."""

    charge_id: str


@dataclass(frozen=True, slots=True)
class NothingCharged:
    """Nothing was taken under the key; `reason` is why if the charge was declined, None if it never arrived."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """The gateway gave no answer; `why` is for the log."""

    why: str


class GatewayTimeoutError(Exception):
    """The gateway did not answer: it may or may not have done what it was asked."""


class GatewayMisconfiguredError(GatewayTimeoutError):
    """The gateway does not serve us as we are set up, with a wrong key for one: it said nothing about the payment.

    The outcome is as unknown as after a timeout, and is looked up once an operator has mended the settings.
    """


class KeyReusedError(Exception):
    """The idempotency key was used for another amount or currency before."""


class Gateway(Protocol):
    """A payment gateway whose calls may be repeated under the same key by anybody, at any time."""

    async def charge(self, request: ChargeRequest) -> Charged | Declined:
        """Take the money, once per key.

        Raises GatewayTimeoutError when the outcome is not known, and KeyReusedError when the key was used for
        something else.
        """

    async def look_up(self, request: ChargeRequest) -> Charged | Declined | None:
        """Say what became of the request, None if it never arrived; raises as `charge` does."""

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        """Return the whole charge, once per key; raises GatewayTimeoutError when the outcome is not known.

        A key that was never seen is closed: a charge that arrives later is declined. (The adapter of a gateway that
        cannot do this charges the key and refunds it.)
        """
