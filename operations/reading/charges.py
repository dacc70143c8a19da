"""Reads the card gateways' records of an order's money. Pure: no I/O, no clock.

The simulated gateway records `gateway_charges`; for Stripe we keep our own records, `stripe_intents`. Both are read as
charges: {outcome, chargeId?, amount?, currency?, refundedAt?}. What is AUTHORIZED is reserved on the card.
"""

from typing import Any

Document = dict[str, Any]

OPEN = "OPEN"
"""The outcome of an intent that may or may not be charged: older releases did not record that."""
TIMES = ("closedAt", "authorizedAt", "voidedAt", "chargedAt", "refundedAt")
"""The fields of an intent that say what became of it."""
AUTHORIZED, CHARGED = "AUTHORIZED", "CHARGED"
NOT_CHARGED = ("DECLINED", "VOIDED")


def has_expired(charge: Document | None) -> bool:
    """Return whether the gateway ended an authorisation by itself, as its reason says."""
    return charge is not None and charge.get("outcome") == "VOIDED" and "chargeId" in charge and "reason" in charge


def intent_as_charge(intent: Document | None) -> Document | None:
    """Return the record of an intent at Stripe as a charge, None if there is no record."""
    if intent is None:
        return None
    if "intentId" not in intent or "reason" in intent:
        return intent | {"outcome": "VOIDED" if "closedAt" in intent else "DECLINED"}
    return intent | {"outcome": _outcome(intent), "chargeId": intent["intentId"]}


def holds_money(charge: Document | None) -> bool:
    """Return whether money was certainly taken or authorised, and not returned."""
    return charge is not None and charge.get("outcome") in (AUTHORIZED, CHARGED) and not charge.get("refundedAt")


def holds_nothing(charge: Document | None) -> bool:
    """Return whether certainly no money was taken, or it was returned; an OPEN intent is undecided."""
    return charge is None or charge.get("outcome") in NOT_CHARGED or bool(charge.get("refundedAt"))


def charge_text(charge: Document | None) -> str:
    """Describe a charge for operators."""
    if charge is None:
        return "nothing"
    refunded = " and refunded" if charge.get("refundedAt") else ""
    return f"{charge.get('chargeId', 'a key')} {charge.get('outcome')}{refunded}"


def _outcome(intent: Document) -> str:
    if "chargedAt" in intent or "refundedAt" in intent:
        return CHARGED
    if "voidedAt" in intent:
        return "VOIDED"
    return AUTHORIZED if "authorizedAt" in intent else OPEN
