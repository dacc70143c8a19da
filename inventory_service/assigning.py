"""Slots for orders of other systems: a reservation that holds a slot and nothing else, under an id of its own.

An order may be given a slot, give it back and be given one again; each time is a reservation, numbered, so that a
reservation's status only ever goes forward. What an order of ours has by `delivery.slot` is its own reservation's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inventory_service.allocation import SlotRequest
from inventory_service.board import AUTO
from inventory_service.releasing import Releasing
from inventory_service.reservations import Reservations
from inventory_service.reserving import Reserving
from inventory_service.stock import Assignment, Booking, Reservation, Status, assignment_id
from shared.contracts.orders import Delivery


@dataclass(frozen=True, slots=True)
class Wish:
    """An order wants a slot; the price of the whole order in minor units."""

    order_id: str
    price: int
    items_count: int


@dataclass(frozen=True, slots=True)
class Full:
    """No slot has room, and `reason` says for how much and until when."""

    reason: str


@dataclass(frozen=True, slots=True)
class Over:
    """The order's own reservation is FAILED or RELEASED: it is not to be delivered."""

    status: Status


Answer = Booking | Full | Over


class Assigning:
    """Assigns slots to orders and releases them; any number of workers may do so at once."""

    def __init__(self, reservations: Reservations, reserving: Reserving, releasing: Releasing) -> None:
        self._reservations = reservations
        self._reserving = reserving
        self._releasing = releasing

    async def assign(self, wishes: Sequence[Wish]) -> list[Answer]:
        """Give every order a slot, the same one as before if it has one; first come, first served."""
        by_order: dict[str, Wish] = {}
        for wish in wishes:
            by_order.setdefault(wish.order_id, wish)
        answers: dict[str, Answer] = {}
        while left := [wish for order_id, wish in by_order.items() if order_id not in answers]:
            answers |= await self._attempt(left)
        return [answers[wish.order_id] for wish in wishes]

    async def release(self, order_id: str) -> Reservation | None:
        """Give the order's slot back; returns its last assignment as it was, None if it never had one."""
        return (await self._releasing.release_assignments([order_id])).get(order_id)

    async def of_an_order(self, order_id: str) -> Reservation | None:
        """The reservation of an order of ours, if there is one."""
        return (await self._reservations.read([order_id])).get(order_id)

    async def _attempt(self, wishes: Sequence[Wish]) -> dict[str, Answer]:
        """Answer all orders but those whose assignment was released at this very moment."""
        assigned = await self._reservations.assignments(wish.order_id for wish in wishes)
        answers = await self._known(wishes, assigned)
        await self._release_over(answers)
        requests = [_request(wish, assigned.get(wish.order_id)) for wish in wishes if wish.order_id not in answers]
        if not requests:
            return answers
        reservations = await self._reserving.reserve(requests)
        booked: dict[str, Booking] = {}
        for request in requests:
            reservation = reservations[request.order_id]
            if reservation.status is Status.FAILED:
                answers[request.assignment.order_id] = Full(reservation.failure_reason or "")
            elif reservation.status is Status.RESERVED and reservation.booking is not None:
                booked[request.assignment.order_id] = reservation.booking
        over = await self._over_meanwhile(booked)
        await self._release_over(over)
        return answers | booked | over

    async def _known(self, wishes: Sequence[Wish], assigned: Mapping[str, Reservation]) -> dict[str, Answer]:
        """Answers for orders that have a slot, by an assignment or by their own reservation, or are over."""
        own = await self._reservations.read(wish.order_id for wish in wishes)
        answers: dict[str, Answer] = {}
        for wish in wishes:
            reservation, assignment = own.get(wish.order_id), assigned.get(wish.order_id)
            if reservation is not None and reservation.status is not Status.RESERVED:
                answers[wish.order_id] = Over(reservation.status)
            elif assignment is not None and assignment.status is Status.RESERVED and assignment.booking is not None:
                answers[wish.order_id] = assignment.booking
            elif reservation is not None and reservation.booking is not None:
                answers[wish.order_id] = reservation.booking
        return answers

    async def _over_meanwhile(self, order_ids: Iterable[str]) -> dict[str, Answer]:
        """Which of these have been refused or released after they had been looked at."""
        own = await self._reservations.decisions(order_ids)
        over = {order_id: decision for order_id, decision in own.items() if decision.status is not Status.RESERVED}
        return {order_id: Over(decision.status) for order_id, decision in over.items()}

    async def _release_over(self, answers: Mapping[str, Answer]) -> None:
        """Give back what is assigned to orders that are over, also by who was killed before he could."""
        over = [order_id for order_id, answer in answers.items() if isinstance(answer, Over)]
        if over:
            await self._releasing.release_assignments(over)


def _request(wish: Wish, before: Reservation | None) -> SlotRequest:
    number = before.assignment.number + 1 if before is not None and before.assignment is not None else 1
    return SlotRequest(
        order_id=assignment_id(wish.order_id, number),
        total_amount=wish.price,
        assignment=Assignment(wish.order_id, number, wish.items_count),
        delivery=Delivery(slot=AUTO),
    )
