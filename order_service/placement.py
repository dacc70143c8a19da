"""Places new orders: validates them, gives each an id, and stores concurrent ones together."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from http import HTTPStatus

from order_service.deadlines import Timeouts, after_intent
from order_service.metrics import placed
from order_service.new_order import NewOrder, fingerprint
from order_service.order import Order
from order_service.orders import NewRecord, Orders
from order_service.outbox import Outbox
from order_service.particulars import documents_of
from order_service.saga import SAGA_VERSION
from shared import tracing
from shared.access.permissions import Permission
from shared.access.principal import PERSON_FIELD, Principal
from shared.clock import Clock
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.database import Document
from shared.group_commit import GroupCommit
from shared.http import ProblemError, key_reused
from shared.problems import OTHER_PERSON

GROUP_LIMIT = 200

REPEATED_WITHIN = timedelta(hours=24)
"""How long after an upgrade a request is recognized that was sent before keys belonged to owners."""

# Any fixed value does: it only keeps these keys apart from others that are made in the same way.
_KEYS = uuid.UUID("6f1dbdb6-6b0a-4a3c-9a5e-4f0d3a0f6e52")


class OrderPlacement:
    """Stores new orders, each exactly once under its idempotency key, and hands them to the outbox."""

    def __init__(
        self, orders: Orders, outbox: Outbox, timeouts: Timeouts, clock: Clock, *, require_prices: bool = True
    ) -> None:
        """With `require_prices`, callers who place orders for themselves only get products that have a price."""
        self._require_prices = require_prices
        self._former_keys = _FormerKeys(orders, clock)
        self._orders = orders
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._groups: GroupCommit[NewRecord, Document | None] = GroupCommit(self._store, limit=GROUP_LIMIT)

    async def place(self, new: NewOrder, idempotency_key: str | None, caller: Principal) -> NewRecord | Document:
        """Store the caller's order and return it; return the stored document if the key and body were used before.

        Raises the 422 problem if the key was used with another body, the 403 problem if the caller places orders for
        one person, and this is another's.
        """
        _check_person(new, caller)
        record = NewRecord(
            self._order(new, idempotency_key, caller),
            fingerprint(new) if idempotency_key is not None else None,
            documents_of(new),
        )
        if idempotency_key is not None and caller.owner is not None:
            former = await self._former_keys.find(order_id_of(None, idempotency_key), record.fingerprint)
            if former is not None:
                return former
        earlier = await self._groups.submit(record)
        if earlier is None:
            placed.inc()
            self._outbox.post(record.order)
            return record
        if earlier.get("fingerprint") != record.fingerprint:
            raise key_reused("Idempotency-Key was used before with another body; use a new key for a new order")
        return earlier

    async def drain(self) -> None:
        """Store all orders that are submitted."""
        await self._groups.drain()

    async def _store(self, submissions: Sequence[NewRecord]) -> Sequence[Document | None]:
        """Insert the orders; return for each the document that was stored before it, if any."""
        first: dict[str, NewRecord] = {}
        for submission in submissions:
            first.setdefault(submission.order.order_id, submission)
        known = await self._orders.insert(list(first.values()))
        repeated = known | {s.order.order_id for s in submissions if first[s.order.order_id] is not s}
        if not repeated:
            return [None] * len(submissions)
        stored = await self._orders.documents(repeated)
        return [
            None if first[s.order.order_id] is s and s.order.order_id not in known else stored[s.order.order_id]
            for s in submissions
        ]

    def _order(self, new: NewOrder, idempotency_key: str | None, caller: Principal) -> Order:
        now = self._clock()
        # The key becomes the id: its uniqueness is that of _id, also across shards, and needs no second record.
        order_id = uuid.uuid4().hex if idempotency_key is None else order_id_of(caller.owner, idempotency_key)
        order = Order(
            order_id=order_id,
            user_id=new.user_id,
            owner_id=caller.owner,
            hold_id=new.hold_id,
            prices_required=self._require_prices and not caller.reaches_all(Permission.ORDERS_PLACE),
            items=tuple(
                Item.model_construct(product_id=i.product_id, quantity=i.quantity, price=i.price) for i in new.items
            ),
            total_amount=new.total_amount,
            currency=new.currency,
            payment=PaymentInstruction.model_construct(**new.payment.model_dump(by_alias=False)),
            delivery=DeliveryInstruction.model_construct(slot=new.delivery.slot if new.delivery else None),
            created_at=now,
            updated_at=now,
            deadline=now + self._timeouts.saga_timeout,
            traceparent=tracing.here(order_id),
            saga_version=SAGA_VERSION,
        )
        return after_intent(order, now, self._timeouts)


class _FormerKeys:
    """Finds orders that were placed under a key before keys belonged to owners.

    A client that repeats such a request after the upgrade must not get a second order. The order has the fingerprint of
    its request, card token included, so that nobody finds another's order by its key alone.
    """

    def __init__(self, orders: Orders, clock: Clock) -> None:
        self._orders = orders
        self._clock = clock
        self._until: datetime | None = None
        """None until it is known how long a key may still be repeated."""

    async def find(self, order_id: str, fingerprint: str | None) -> Document | None:
        if self._until is None:
            newest = await self._orders.newest_without_owner()
            self._until = newest + REPEATED_WITHIN if newest is not None else self._clock()
        if self._clock() >= self._until:
            return None
        found = await self._orders.document(order_id, {"ownerId": None})
        return found if found is not None and found.get("fingerprint") == fingerprint else None


def order_id_of(owner: str | None, idempotency_key: str) -> str:
    """Return the id of the order that an owner places under a key."""
    return uuid.uuid5(_KEYS, idempotency_key if owner is None else f"{owner}\0{idempotency_key}").hex


def _check_person(new: NewOrder, caller: Principal) -> None:
    """Raise the 403 problem if the caller places orders for one person, and this is another's."""
    person = caller.visible(Permission.ORDERS_PLACE).get(PERSON_FIELD)
    if person is not None and person != new.user_id:
        detail = f"You place orders for yourself only: userId is {new.user_id!r}, yours is {person!r}"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail, kind=OTHER_PERSON)
