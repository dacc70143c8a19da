"""Assignments: slots for orders of other systems, each a reservation that holds a slot and nothing else.

An order may get a slot, return it and get another. Each assignment is a separate, numbered reservation, so the status
of a reservation only moves forward. An order of this shop has its slot, by `delivery.slot`, in its own reservation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inventory_service.allocation import SlotOnlyOrder
from inventory_service.availability import AUTO
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.stock import Assignment, Booking, Reservation, Status, assignment_id
from shared.contracts.orders import DeliveryInstruction
from shared.group_commit import GroupCommit

MAX_ASSIGNED_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class AssignmentRequest:
    """A request for a slot; `price` is that of the whole order, in minor units.

    With `own_only`, an order that belongs to another owner than `owner_id` does not exist for the one who asks.
    """

    order_id: str
    price: int
    items_count: int
    owner_id: str | None = None
    own_only: bool = False


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No slot has room; `reason` says for what price and until when."""

    reason: str


@dataclass(frozen=True, slots=True)
class OrderClosed:
    """The order's own reservation is FAILED or RELEASED: it will not be delivered."""

    status: Status


@dataclass(frozen=True, slots=True)
class NotOwn:
    """The order belongs to another owner."""


AssignmentResult = Booking | NoRoom | OrderClosed | NotOwn


class SlotAssigner:
    """Assigns and releases slots; safe with any number of concurrent workers."""

    def __init__(self, reservations: Reservations, processor: ReservationProcessor, releaser: Releaser) -> None:
        self._reservations = reservations
        self._processor = processor
        self._releaser = releaser
        self._assignments: GroupCommit[AssignmentRequest, AssignmentResult] = GroupCommit(
            self.assign, limit=MAX_ASSIGNED_AT_ONCE
        )
        self._releases: GroupCommit[str, Reservation | None] = GroupCommit(self.release_all, limit=MAX_ASSIGNED_AT_ONCE)

    async def assign_with_others(self, request: AssignmentRequest) -> AssignmentResult:
        """Do as `assign`, in one write with the requests that arrive meanwhile."""
        return await self._assignments.submit(request)

    async def release_with_others(self, order_id: str) -> Reservation | None:
        """Do as `release`, in one write with the requests that arrive meanwhile."""
        return await self._releases.submit(order_id)

    async def assign(self, requests: Sequence[AssignmentRequest]) -> list[AssignmentResult]:
        """Assign a slot to each order, first come, first served; an order that has one keeps it."""
        by_order: dict[str, AssignmentRequest] = {}
        for request in requests:
            by_order.setdefault(request.order_id, request)
        answers: dict[str, AssignmentResult] = {}
        while left := [request for order_id, request in by_order.items() if order_id not in answers]:
            answers |= await self._attempt(left)
        # The first to ask owns the order from then on. Staff may ask for every order, so for them nothing is read.
        restricted = {request.order_id for request in requests if request.own_only}
        owners = await self.owners(restricted) if restricted else {}
        return [
            NotOwn()
            if request.own_only and owners.get(request.order_id, request.owner_id) != request.owner_id
            else answers[request.order_id]
            for request in requests
        ]

    async def owners(self, order_ids: Iterable[str]) -> dict[str, str | None]:
        """Return the owner of each of these orders that has a reservation or an assignment."""
        ids = list(order_ids)
        assigned = {order_id: found.owner_id for order_id, found in (await self._reservations.assignments(ids)).items()}
        return assigned | {order_id: found.owner_id for order_id, found in (await self._reservations.read(ids)).items()}

    async def release(self, order_id: str) -> Reservation | None:
        """Release the order's slot; return its latest assignment as it was before, None if it never had one."""
        return (await self.release_all([order_id]))[0]

    async def release_all(self, order_ids: Sequence[str]) -> list[Reservation | None]:
        """Release these orders' slots; return their latest assignments as they were before."""
        assignments = await self._releaser.release_assignments(list(dict.fromkeys(order_ids)))
        return [assignments.get(order_id) for order_id in order_ids]

    async def own_reservation(self, order_id: str) -> Reservation | None:
        """Return the reservation of an order of this shop, or None."""
        return (await self._reservations.read([order_id])).get(order_id)

    async def _attempt(self, requests: Sequence[AssignmentRequest]) -> dict[str, AssignmentResult]:
        """Answer all orders except those whose assignment is being released concurrently."""
        order_ids = [request.order_id for request in requests]
        assigned = await self._reservations.assignments(order_ids)
        answers = await self._from_own_reservations(order_ids)
        await self._releaser.release_assignments([order_id for order_id in answers if order_id in assigned])
        for order_id, assignment in assigned.items():
            if order_id not in answers and assignment.status is Status.RESERVED and assignment.booking is not None:
                answers[order_id] = assignment.booking
        orders = [_order(each, assigned.get(each.order_id)) for each in requests if each.order_id not in answers]
        return answers | await self._book(orders) if orders else answers

    async def _book(self, orders: Sequence[SlotOnlyOrder]) -> dict[str, AssignmentResult]:
        answers: dict[str, AssignmentResult] = {}
        reservations = await self._processor.reserve(orders)
        for order in orders:
            reservation = reservations[order.order_id]
            if reservation.status is Status.FAILED:
                answers[order.assignment.order_id] = NoRoom(reservation.failure_reason or "")
            elif reservation.status is Status.RESERVED and reservation.booking is not None:
                answers[order.assignment.order_id] = reservation.booking
        # An order of this shop may have been decided meanwhile: whichever side records second sees the other.
        own = await self._from_own_reservations(answers)
        await self._releaser.release_assignments(list(own))
        return answers | own

    async def _from_own_reservations(self, order_ids: Iterable[str]) -> dict[str, AssignmentResult]:
        """Answer for this shop's orders that have booked a slot themselves or are closed: they keep no assignment."""
        own = await self._reservations.read(order_ids)
        answers: dict[str, AssignmentResult] = {}
        for order_id, reservation in own.items():
            if reservation.status is not Status.RESERVED:
                answers[order_id] = OrderClosed(reservation.status)
            elif reservation.booking is not None:
                answers[order_id] = reservation.booking
        return answers


def _order(request: AssignmentRequest, before: Reservation | None) -> SlotOnlyOrder:
    number = before.assignment.number + 1 if before is not None and before.assignment is not None else 1
    return SlotOnlyOrder(
        order_id=assignment_id(request.order_id, number),
        total_amount=request.price,
        assignment=Assignment(request.order_id, number, request.items_count),
        owner_id=request.owner_id,
        delivery=DeliveryInstruction(slot=AUTO),
    )
