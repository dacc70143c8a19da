"""Which acts need a second person. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from operations.actions import ORDER_RELEASE
from operations.settings import ApprovalAction
from shared.access.permissions import Permission
from shared.database import Document

REFUND_PART = "order.refund-part"
REPLAY: ApprovalAction = "dead-letters.replay"
DISCARD: ApprovalAction = "dead-letters.discard"
"""Of more letters than those that are named by their ids."""
EDIT = "dead-letters.edit"
"""Of more letters than those that are named by their ids, where a replay of them needs a second person."""
REPAIR: ApprovalAction = "accounts.repair"

NEEDED: Mapping[str, Permission] = {
    "order.cancel": Permission.ORDERS_CANCEL,
    "order.retry": Permission.ORDERS_DECIDE,
    "order.refund": Permission.ORDERS_DECIDE,
    ORDER_RELEASE: Permission.ORDERS_DECIDE,
    REFUND_PART: Permission.ORDERS_FULFIL,
    REPLAY: Permission.LETTERS_DECIDE,
    DISCARD: Permission.LETTERS_DECIDE,
    EDIT: Permission.LETTERS_EDIT,
    REPAIR: Permission.FUNDS_WRITE,
}
"""The permission that both persons need, by act."""


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Acts on orders from `amount` on, in minor units of the order's currency, and the named others."""

    amount: int | None = None
    actions: frozenset[str] = frozenset()

    def order_needs(self, total: int | None) -> bool:
        """Return whether an act on an order of this total needs a second person."""
        return self.amount is not None and total is not None and total >= self.amount

    def letters_need(self, action: ApprovalAction, ids: Sequence[str]) -> bool:
        """Return whether an act on dead letters needs a second person: never if each is named by its id."""
        return not ids and self.needs(action)

    def needs(self, action: ApprovalAction) -> bool:
        """Return whether another act needs a second person."""
        return action in self.actions

    def as_document(self) -> Document:
        """Return the policy as it is stored, for commands."""
        return {"amount": self.amount, "actions": sorted(self.actions)}


def policy_of(document: Document | None) -> ApprovalPolicy:
    """Return the policy that was stored; one without any act if none was."""
    return ApprovalPolicy(document["amount"], frozenset(document["actions"])) if document else ApprovalPolicy()
