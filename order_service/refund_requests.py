"""Takes requests for refunds in part: validates them, gives each an id, and stores each once under its key."""

import hashlib
import uuid
from datetime import datetime
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from order_service.deadlines import Timeouts, after_refund_request
from order_service.events import RefundPartRequested
from order_service.handlers import ATTEMPTS
from order_service.metrics import count_changes
from order_service.order import Order, Refund, RefundLine, Status
from order_service.order_actions import in_trace, require_second_person
from order_service.orders import Change, Orders
from order_service.outbox import Outbox
from order_service.refunds import find, refusal
from order_service.saga import SAGA
from shared.access.permissions import Permission
from shared.access.principal import Principal, Visible
from shared.clock import Clock
from shared.contracts.base import Name, Text
from shared.contracts.orders import MAX_ITEMS, MAX_QUANTITY
from shared.errors import TransientError
from shared.http import Body, conflict, invalid, key_reused, not_found, shown_as
from shared.money import JsonMoney, require_whole
from shared.problems import NOT_REFUNDABLE
from shared.repeats import note_repeat
from shared.validation import wrong_field

# Any fixed value does: it only keeps these keys apart from others that are made in the same way.
_KEYS = uuid.UUID("0f1c8f0a-52a5-4a35-9b57-6d6f6f5ac1b1")


class NewRefundLine(Body):
    """Units of one product to refund, at the price of the order's line."""

    product_id: Name
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


class NewRefund(Body):
    """The part to refund: an amount or lines; with `restock`, the units of the lines go back into free stock."""

    model_config = shown_as({"items": [{"productId": "p1", "quantity": 1}], "reason": "Damaged", "restock": True})

    amount: Annotated[JsonMoney, Field(gt=0)] | None = None
    items: Annotated[list[NewRefundLine], Field(min_length=1, max_length=MAX_ITEMS)] | None = None
    reason: Text | None = None
    restock: bool = False

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: list[NewRefundLine] | None) -> list[NewRefundLine] | None:
        products = [item.product_id for item in items or ()]
        if len(set(products)) < len(products):
            twice = next(product for product in products if products.count(product) > 1)
            raise ValueError(f"product {twice} is listed twice; put its units into one line")
        return items

    @model_validator(mode="after")
    def _says_how_much(self) -> "NewRefund":
        if (self.amount is None) == (self.items is None):
            raise wrong_field("amount", "either amount or items is required, and not both")
        if self.restock and self.items is None:
            raise wrong_field("restock", "needs items: an amount does not say which units come back")
        return self


class RefundRequests:
    """Applies requests for refunds in part to orders."""

    def __init__(
        self, orders: Orders, outbox: Outbox, timeouts: Timeouts, clock: Clock, *, approval_amount: int | None = None
    ) -> None:
        self._orders = orders
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._approval_amount = approval_amount

    async def request(
        self, order_id: str, new: NewRefund, key: str | None, caller: Principal, permission: Permission
    ) -> tuple[Refund, bool]:
        """Store a refund and have it carried out; return it, or the one that was stored under the key before and True.

        Raises the 404 problem for an order that is unknown or not visible, the 403 problem if it needs a second person,
        the 409 problem if less is left, the 422 problem if the key was used with another body.
        """
        refund_id = uuid.uuid4().hex if key is None else _id_of(caller.owner, order_id, key)
        fingerprint = None if key is None else hashlib.sha256(new.model_dump_json().encode()).hexdigest()
        for _ in range(ATTEMPTS):
            order = await self._load(order_id, caller.visible(permission))
            if earlier := find(order, refund_id):
                known = _same_request(earlier, fingerprint)
                note_repeat("order.refund_part", order_id=order_id, refund_id=refund_id)
                return known, True
            require_second_person(order, "refunded", caller, permission, self._approval_amount)
            now = self._clock()
            refund = _refund(order, new, refund_id, fingerprint, now)
            change = self._decide(order, refund, now)
            if await self._orders.apply([change]):
                count_changes([change])
                self._outbox.post_commands(in_trace(change.stored, RefundPartRequested(refund)))
                return refund, False
        raise TransientError(f"Order {order_id} is changing too quickly, try again")

    async def of_order(self, order_id: str, visible: Visible) -> tuple[Refund, ...]:
        """Return the refunds of an order; raises the 404 problem for one that is unknown or not visible."""
        return (await self._load(order_id, visible)).refunds

    async def _load(self, order_id: str, visible: Visible) -> Order:
        order = (await self._orders.load([order_id], visible)).get(order_id)
        if order is None:
            raise not_found(f"Order {order_id}")
        return order

    def _decide(self, order: Order, refund: Refund, now: datetime) -> Change:
        request = RefundPartRequested(refund)
        if not SAGA.accepts(order, request):
            raise conflict(
                f"Order {order.order_id} cannot be refunded in part: {_why_not(order, refund)}", NOT_REFUNDABLE
            )
        transition = SAGA.advance(order, request, now)
        after = after_refund_request(transition.order, now, self._timeouts)
        return Change(order, after, (transition.entry,) if transition.entry else ())


def _id_of(owner: str | None, order_id: str, key: str) -> str:
    """Return the id of the refund that an owner requests under a key; the keys of each order are its own."""
    return uuid.uuid5(_KEYS, "\0".join((owner or "", order_id, key))).hex


def _same_request(earlier: Refund, fingerprint: str | None) -> Refund:
    if earlier.fingerprint != fingerprint:
        raise key_reused("Idempotency-Key was used before with another body; use a new key for a new refund")
    return earlier


def _refund(order: Order, new: NewRefund, refund_id: str, fingerprint: str | None, now: datetime) -> Refund:
    """Build the refund; by lines, its amount is that of the units at the order's prices."""
    lines = tuple(RefundLine(item.product_id, item.quantity) for item in new.items or ())
    prices = {item.product_id: item.price for item in order.items}
    amount = new.amount
    if amount is None:
        amount = sum(line.quantity * prices.get(line.product_id, 0) for line in lines)
    else:
        try:
            require_whole(order.currency, {"amount": amount})
        except ValueError as error:
            raise invalid(("amount", str(error))) from None
    return Refund(
        refund_id=refund_id,
        amount=amount,
        created_at=now,
        updated_at=now,
        lines=lines,
        reason=new.reason,
        restock=new.restock,
        fingerprint=fingerprint,
    )


def _why_not(order: Order, refund: Refund) -> str:
    if order.status not in (Status.CONFIRMED, Status.COMPLETED):
        return f"it is {order.status}, and only CONFIRMED and COMPLETED orders are"
    return refusal(order, refund) or f"it is {order.status}"
