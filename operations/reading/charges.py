"""What the records of the card gateways say about an order's money. Pure: no I/O, no clock.

The simulated gateway keeps a book, `gateway_charges`; for Stripe there are our own records, `stripe_intents`. Both are
read as charges: {outcome, chargeId?, amount?, currency?, refundedAt?}.
"""

from typing import Any

Document = dict[str, Any]

OPEN = "OPEN"
"""The outcome of an intent that is not known to be charged, which older records never said."""
NOT_CHARGED = ("DECLINED", "VOIDED")


def intent_as_charge(intent: Document | None) -> Document | None:
    """Return the record of an intent at Stripe as a charge, None if there is none."""
    if intent is None:
        return None
    if "intentId" not in intent or "reason" in intent:
        return intent | {"outcome": "VOIDED" if "closedAt" in intent else "DECLINED"}
    charged = "chargedAt" in intent or "refundedAt" in intent
    return intent | {"outcome": "CHARGED" if charged else OPEN, "chargeId": intent["intentId"]}


def holds_money(charge: Document | None) -> bool:
    """Whether money was certainly taken and not returned."""
    return charge is not None and charge.get("outcome") == "CHARGED" and not charge.get("refundedAt")


def holds_nothing(charge: Document | None) -> bool:
    """Whether no money was taken, or it was returned; an intent that is OPEN neither holds money nor nothing."""
    return charge is None or charge.get("outcome") in NOT_CHARGED or bool(charge.get("refundedAt"))


def charge_text(charge: Document | None) -> str:
    """Describe a charge for operators."""
    if charge is None:
        return "nothing"
    refunded = " and refunded" if charge.get("refundedAt") else ""
    return f"{charge.get('chargeId', 'a key')} {charge.get('outcome')}{refunded}"
