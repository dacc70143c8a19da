"""Slots for orders of other systems: a reservation that holds a slot and nothing else, under an id of its own.

An order may be given a slot, give it back and be given one again; each time is a reservation, numbered, so that a
reservation's status only ever goes forward. What an order of ours has by `delivery.slot` is its own reservation's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inventory_service.allocation import SlotOnlyOrder
from inventory_service.availability import AUTO
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.stock import Assignment, Booking, Reservation, Status, assignment_id
from shared.contracts.orders import Delivery


@dataclass(frozen=True, slots=True)
class AssignmentRequest:
    """An order wants a slot; the price of the whole order in minor units."""

    order_id: str
    price: int
    items_count: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No slot has room, and `reason` says for how much and until when."""

    reason: str


@dataclass(frozen=True, slots=True)
class OrderClosed:
    """The order's own reservation is FAILED or RELEASED: it is not to be delivered."""

    status: Status


AssignmentResult = Booking | NoRoom | OrderClosed


class SlotAssigner:
    """Assigns slots to orders and releases them; any number of workers may do so at once."""

    def __init__(self, reservations: Reservations, processor: ReservationProcessor, releaser: Releaser) -> None:
        self._reservations = reservations
        self._processor = processor
        self._releaser = releaser

    async def assign(self, wishes: Sequence[AssignmentRequest]) -> list[AssignmentResult]:
        """Give every order a slot, the same one as before if it has one; first come, first served."""
        by_order: dict[str, AssignmentRequest] = {}
        for wish in wishes:
            by_order.setdefault(wish.order_id, wish)
        answers: dict[str, AssignmentResult] = {}
        while left := [wish for order_id, wish in by_order.items() if order_id not in answers]:
            answers |= await self._attempt(left)
        return [answers[wish.order_id] for wish in wishes]

    async def release(self, order_id: str) -> Reservation | None:
        """Give the order's slot back; returns its last assignment as it was, None if it never had one."""
        return (await self.release_all([order_id]))[0]

    async def release_all(self, order_ids: Sequence[str]) -> list[Reservation | None]:
        """Give these orders' slots back; returns their last assignments as they were."""
        assignments = await self._releaser.release_assignments(list(dict.fromkeys(order_ids)))
        return [assignments.get(order_id) for order_id in order_ids]

    async def of_an_order(self, order_id: str) -> Reservation | None:
        """The reservation of an order of ours, if there is one."""
        return (await self._reservations.read([order_id])).get(order_id)

    async def _attempt(self, wishes: Sequence[AssignmentRequest]) -> dict[str, AssignmentResult]:
        """Answer all orders but those whose assignment was released at this very moment."""
        assigned = await self._reservations.assignments(wish.order_id for wish in wishes)
        answers = await self._by_their_own(wish.order_id for wish in wishes)
        await self._releaser.release_assignments([order_id for order_id in answers if order_id in assigned])
        for order_id, assignment in assigned.items():
            if order_id not in answers and assignment.status is Status.RESERVED and assignment.booking is not None:
                answers[order_id] = assignment.booking
        requests = [_request(wish, assigned.get(wish.order_id)) for wish in wishes if wish.order_id not in answers]
        return answers | await self._book(requests) if requests else answers

    async def _book(self, requests: Sequence[SlotOnlyOrder]) -> dict[str, AssignmentResult]:
        answers: dict[str, AssignmentResult] = {}
        reservations = await self._processor.reserve(requests)
        for request in requests:
            reservation = reservations[request.order_id]
            if reservation.status is Status.FAILED:
                answers[request.assignment.order_id] = NoRoom(reservation.failure_reason or "")
            elif reservation.status is Status.RESERVED and reservation.booking is not None:
                answers[request.assignment.order_id] = reservation.booking
        # An order of ours may have been decided meanwhile: whichever side records second sees the other.
        by_their_own = await self._by_their_own(answers)
        await self._releaser.release_assignments(list(by_their_own))
        return answers | by_their_own

    async def _by_their_own(self, order_ids: Iterable[str]) -> dict[str, AssignmentResult]:
        """Answers for orders of ours whose reservation has a slot, or which are over: they keep no assignment."""
        own = await self._reservations.read(order_ids)
        answers: dict[str, AssignmentResult] = {}
        for order_id, reservation in own.items():
            if reservation.status is not Status.RESERVED:
                answers[order_id] = OrderClosed(reservation.status)
            elif reservation.booking is not None:
                answers[order_id] = reservation.booking
        return answers


def _request(wish: AssignmentRequest, before: Reservation | None) -> SlotOnlyOrder:
    number = before.assignment.number + 1 if before is not None and before.assignment is not None else 1
    return SlotOnlyOrder(
        order_id=assignment_id(wish.order_id, number),
        total_amount=wish.price,
        assignment=Assignment(wish.order_id, number, wish.items_count),
        delivery=Delivery(slot=AUTO),
    )
