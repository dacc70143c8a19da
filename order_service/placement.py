"""Places new orders: validates them, gives each an id, and stores concurrent ones together.

However long MongoDB does not answer, a request is answered soon:

    nothing was sent        503   sending the request again cannot make a second order
    sent under a key        503   the key tells whether the order was stored
    sent without a key      504   the order may have been stored, so the answer says where to look
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus

import pymongo
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from order_service.deadlines import Timeouts, after_intent
from order_service.intake import DEFAULT_SECONDS, Intake
from order_service.metrics import placed
from order_service.new_order import NewOrder, fingerprint
from order_service.order import Order
from order_service.orders import NewRecord, Orders
from order_service.outbox import Outbox
from order_service.particulars import documents_of
from order_service.saga import SAGA_VERSION
from shared import database, tracing
from shared.access.permissions import Permission
from shared.access.principal import PERSON_FIELD, Principal
from shared.clock import Clock
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.database import Document
from shared.errors import DatabaseUnavailableError, TransientError
from shared.group_commit import GroupCommit, NotStartedError
from shared.http import ProblemError, key_reused, located
from shared.problems import OTHER_PERSON, OUTCOME_UNKNOWN
from shared.repeats import note_repeat

GROUP_LIMIT = 200
LEAST_SHARE = 0.2
"""The least part of that time for a write, however long its requests have waited for the previous one."""

REPEATED_WITHIN = timedelta(hours=24)
"""How long after an upgrade a request is recognized that was sent before keys belonged to owners."""

_PLACE = "order.place"

# Any fixed value does: it only keeps these keys apart from others that are made in the same way.
_KEYS = uuid.UUID("6f1dbdb6-6b0a-4a3c-9a5e-4f0d3a0f6e52")


class OrderPlacement:
    """Stores new orders, each exactly once under its idempotency key, and hands them to the outbox."""

    def __init__(
        self,
        orders: Orders,
        outbox: Outbox,
        timeouts: Timeouts,
        clock: Clock,
        intake: Intake,
        *,
        require_prices: bool = True,
        within: float = DEFAULT_SECONDS,
    ) -> None:
        """With `require_prices`, callers who place orders for themselves only get products that have a price.

        A write begins within `within` seconds, and takes no longer than that.
        """
        self._intake = intake
        self._within = within
        self._require_prices = require_prices
        self._former_keys = _FormerKeys(orders, clock)
        self._orders = orders
        self._outbox = outbox
        self._timeouts = timeouts
        self._clock = clock
        self._groups: GroupCommit[NewRecord, Document | TransientError | None] = GroupCommit(
            self._store, limit=GROUP_LIMIT
        )

    async def admit(self, idempotency_key: str | None, caller: Principal) -> None:
        """Raise the 503 problem if the caller's order would be refused whatever it is; `place` decides again.

        A key under which an order is stored, the caller's own or one of before keys had owners, lets the request pass.
        It needs nothing but the headers of a request. One that is refused should cost as little as possible: while
        there are too many, most of them are. Raises NotStartedError or the driver's error while MongoDB is away.
        """
        known_as: Collection[str] = ()
        if idempotency_key is not None:
            known_as = {order_id_of(owner, idempotency_key) for owner in (caller.owner, None)}
        await self._intake.admit(caller.owner, known_as)

    async def place(self, new: NewOrder, idempotency_key: str | None, caller: Principal) -> NewRecord | Document:
        """Store the caller's order and return it; return the stored document if the key and body were used before.

        Raises the 422 problem if the key was used with another body, the 403 problem if the caller places orders for
        one person, and this is another's, the 503 problem if a new order would not settle in time. While MongoDB is
        away, raises NotStartedError if nothing was stored; else the driver's error where the key tells what was, and
        the 504 problem where there is none.
        """
        _check_person(new, caller)
        record = NewRecord(
            self._order(new, idempotency_key, caller),
            fingerprint(new) if idempotency_key is not None else None,
            documents_of(new),
        )
        if idempotency_key is not None and caller.owner is not None:
            with pymongo.timeout(self._within):
                former = await self._former_keys.find(order_id_of(None, idempotency_key), record.fingerprint)
            if former is not None:
                note_repeat(_PLACE, order_id=former["_id"])
                return former
        await self._intake.admit(caller.owner, [record.order.order_id] if idempotency_key is not None else ())
        with self._intake.joining() as since:
            earlier = await self._store_with_others(record)
        if earlier is None:
            self._intake.accepted(record.order, since)
            placed.inc()
            self._outbox.post(record.order)
            return record
        if earlier.get("fingerprint") != record.fingerprint:
            raise key_reused("Idempotency-Key was used before with another body; use a new key for a new order")
        note_repeat(_PLACE, order_id=record.order.order_id)
        return earlier

    async def drain(self) -> None:
        """Store all orders that are submitted."""
        await self._groups.drain()

    async def _store_with_others(self, record: NewRecord) -> Document | None:
        """Store an order; return the document that was stored before it under its key, if any."""
        try:
            earlier = await self._groups.submit(record, start_within=self._within)
        except ServerSelectionTimeoutError as error:  # raised only if nothing was sent
            raise NotStartedError(database.first_line(error)) from error
        except PyMongoError as error:
            if record.fingerprint is not None or not database.is_transient(error):
                raise
            raise _outcome_unknown(record.order.order_id) from error
        if isinstance(earlier, TransientError):
            raise earlier
        return earlier

    async def _store(self, submissions: Sequence[NewRecord]) -> Sequence[Document | TransientError | None]:
        """Insert the orders; return for each the document that was stored before it, if any, or why it is not known."""
        first: dict[str, NewRecord] = {}
        for submission in submissions:
            first.setdefault(submission.order.order_id, submission)
        with pymongo.timeout(self._seconds_for(submissions)):
            known = await self._orders.insert(list(first.values()))
            repeated = known | {s.order.order_id for s in submissions if first[s.order.order_id] is not s}
            if not repeated:
                return [None] * len(submissions)
            stored = await self._read_stored(repeated)
        return [
            None if first[s.order.order_id] is s and s.order.order_id not in known else stored[s.order.order_id]
            for s in submissions
        ]

    def _seconds_for(self, submissions: Sequence[NewRecord]) -> float:
        """Return how long a write may take: the less, the longer its requests have waited for it."""
        waited = (self._clock() - min(each.order.created_at for each in submissions)).total_seconds()
        return self._within * min(max(1 - waited / self._within, LEAST_SHARE), 1.0)

    async def _read_stored(self, ids: Collection[str]) -> Mapping[str, Document | TransientError]:
        """Read the orders of repeated requests; an error concerns these only, as the others of the group are stored."""
        try:
            stored = await self._orders.documents(ids)
        except PyMongoError as error:
            if not database.is_transient(error):
                raise
            return dict.fromkeys(ids, DatabaseUnavailableError(database.first_line(error)))
        # It exists; a new primary may just not show it yet.
        unread = DatabaseUnavailableError("an order that is stored cannot be read yet")
        return {order_id: stored.get(order_id, unread) for order_id in ids}

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
        found = (await self._orders.documents([order_id])).get(order_id, {})
        return found if found.get("ownerId") is None and found.get("fingerprint") == fingerprint else None


def order_id_of(owner: str | None, idempotency_key: str) -> str:
    """Return the id of the order that an owner places under a key."""
    return uuid.uuid5(_KEYS, idempotency_key if owner is None else f"{owner}\0{idempotency_key}").hex


def _outcome_unknown(order_id: str) -> ProblemError:
    """Return the 504 problem for an order that may have been stored, without a key to find out by."""
    detail = f"The database (MongoDB) did not answer in time: order {order_id} may have been stored"
    return ProblemError(HTTPStatus.GATEWAY_TIMEOUT, detail, kind=OUTCOME_UNKNOWN, headers=located("orders", order_id))


def _check_person(new: NewOrder, caller: Principal) -> None:
    """Raise the 403 problem if the caller places orders for one person, and this is another's."""
    person = caller.visible(Permission.ORDERS_PLACE).get(PERSON_FIELD)
    if person is not None and person != new.user_id:
        detail = f"You place orders for yourself only: userId is {new.user_id!r}, yours is {person!r}"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail, kind=OTHER_PERSON)
