"""The audit's judgement of slots and assignments: tolerated between two steps, and wrong from some time on."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from operations.audit import slots
from operations.audit.slots import AssignmentRecords, judge_assignment
from operations.audit.stock import LONGEST_PENDING, StockRecords, lingering

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
INSTANT = timedelta(milliseconds=1)
ID = f"slot:{int(NOW.timestamp())}"
ELSEWHERE = f"slot:{int(NOW.timestamp()) + 900}"
OVER = {"settled": True, "status": "CONFIRMED", "updatedAt": NOW - LONGEST_PENDING}
Document = dict[str, Any]


def reserved(slot_id: str = ID, price: int = 1000, status: str = "RESERVED", at: datetime = NOW) -> Document:
    return {"status": status, "items": [], "slot": {"slotId": slot_id, "price": price}, "updatedAt": at}


def slot_records(
    load: int, booked: int, move: tuple[str, int] | None = None, *records: Document, **slot: Any
) -> StockRecords:
    """A slot for 5,000 with this load, the sum of its reservations, and one order with a pending move and records."""
    known = {"kind": "slot", "supplied": 5000, "quantity": 5000 - load, "start": NOW, "end": NOW + timedelta(hours=1)}
    moving = {move[0]: move[1]} if move else {}
    reservation, order = (*records, None, None)[:2]
    holder = move[0] if move else ""
    return StockRecords(
        ID,
        known | {"moving": moving} | slot,
        booked,
        0,
        {holder: reservation} if reservation else {},
        {holder: order} if order else {},
    )


def kinds(judged: StockRecords, now: datetime = NOW) -> list[str]:
    return [violation.kind for violation in slots.judge(judged, now)]


TAKING, GIVING = ("o1", -1000), ("o1", 1000)

STEPS = {
    "empty": slot_records(0, 0),
    "booked": slot_records(1000, 1000),
    "full": slot_records(5000, 5000),
    "taken, nothing recorded": slot_records(1000, 0, TAKING, {}, OVER | {"settled": False}),
    "recorded": slot_records(1000, 1000, TAKING, reserved(), OVER),
    "another worker's slot is the order's": slot_records(1000, 0, TAKING, reserved(ELSEWHERE), OVER),
    "given back": slot_records(0, 1000, GIVING, reserved(), OVER),
    "released": slot_records(0, 0, GIVING, reserved(status="RELEASED"), OVER),
    "an assignment that is undecided": slot_records(1000, 0, ("assignment:1:x", -1000)),
    "an assignment that is recorded": slot_records(1000, 1000, ("assignment:1:x", -1000), reserved()),
    "an order without a price": slot_records(0, 0, ("o1", 0), reserved(price=0), OVER),
    "more than a lowered capacity": slot_records(9000, 9000, ceiling=9000),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_slot_is_right_at_each_step(step: str) -> None:
    assert kinds(STEPS[step]) == []


def test_a_pending_move_on_a_slot_that_the_order_does_not_have_must_go_in_time() -> None:
    stale = STEPS["another worker's slot is the order's"]
    assert kinds(stale, NOW + INSTANT) == ["pending move"]
    assert [v.found for v in slots.judge(stale, NOW + INSTANT)] == [
        f"a pending move of 10 for order o1, which has {ELSEWHERE}"
    ]
    of_an_assignment = slot_records(1000, 0, ("assignment:1:x", -1000), reserved(ELSEWHERE, at=NOW - LONGEST_PENDING))
    assert kinds(of_an_assignment) == []
    assert kinds(of_an_assignment, NOW + INSTANT) == ["pending move"]


def test_harmless_pending_moves_are_counted() -> None:
    recorded = STEPS["an assignment that is recorded"]
    assert (lingering(recorded, NOW + LONGEST_PENDING), kinds(recorded, NOW + LONGEST_PENDING)) == (0, [])
    assert lingering(recorded, NOW + LONGEST_PENDING + INSTANT) == 1
    assert lingering(STEPS["an assignment that is undecided"], NOW + LONGEST_PENDING + INSTANT) == 0


WRONG: dict[str, tuple[StockRecords, list[str]]] = {
    "above the capacity": (slot_records(5001, 5001), ["overbooked"]),
    "above what was left": (slot_records(9001, 9001, ceiling=9000), ["overbooked"]),
    "released and not given back": (slot_records(1000, 0, None), ["conservation"]),
    "taken twice": (slot_records(2000, 1000, TAKING, reserved(), OVER), ["conservation"]),
    "given back twice": (slot_records(-1000, 0), ["conservation"]),
    "it ends before it begins": (slot_records(0, 0, end=NOW), ["times"]),
    "its id says another time": (slot_records(0, 0, start=NOW - timedelta(hours=1)), ["times"]),
    "booked and not there": (StockRecords(ID, None, 1000, 0, {}, {}), ["unknown slot"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_violations_of_a_slot(name: str) -> None:
    judged, expected = WRONG[name]
    assert kinds(judged) == expected
    assert {violation.subject for violation in slots.judge(judged, NOW)} == {"slot"}


@pytest.mark.parametrize("status", ["CONFIRMED", "CANCELLED", "PENDING"])
@pytest.mark.parametrize("assigned", ["RESERVED", "RELEASED"])
def test_an_assignment_is_wrong_once_our_order_is_cancelled_and_settled(status: str, assigned: str) -> None:
    record = {"_id": "assignment:1:o1", **reserved(status=assigned)}
    order = {"_id": "o1"} | OVER | {"status": status, "settled": status != "PENDING"}
    wrong = status == "CANCELLED" and assigned == "RESERVED"
    assert list(judge_assignment(AssignmentRecords(record, order), NOW)) == []
    late = list(judge_assignment(AssignmentRecords(record, order), NOW + INSTANT))
    assert [violation.kind for violation in late] == (["assignment held"] if wrong else [])


@pytest.mark.parametrize("assigned", ["RESERVED", "RELEASED"])
@pytest.mark.parametrize("own", ["RESERVED", "RELEASED", "FAILED"])
def test_an_order_has_one_slot_by_its_reservation_or_by_an_assignment(own: str, assigned: str) -> None:
    record = {"_id": "assignment:1:o1", **reserved(status=assigned, at=NOW - LONGEST_PENDING)}
    reservation = {"_id": "o1", **reserved(ELSEWHERE, status=own, at=NOW - LONGEST_PENDING)}
    both = AssignmentRecords(record, None, reservation)
    assert list(judge_assignment(both, NOW)) == []
    late = [(v.kind, v.subject, v.id, v.found) for v in judge_assignment(both, NOW + INSTANT)]
    two = f"{ELSEWHERE} by its reservation and {ID} by assignment:1:o1"
    assert late == ([("two slots", "order", "o1", two)] if (own, assigned) == ("RESERVED", "RESERVED") else [])


@pytest.mark.parametrize("latest", ["assignment", "reservation"])
def test_two_slots_are_wrong_once_both_are_recorded_for_a_while(latest: str) -> None:
    before = NOW - timedelta(days=1)
    record = {"_id": "assignment:1:o1", **reserved(at=NOW if latest == "assignment" else before)}
    own = {"_id": "o1", **reserved(ELSEWHERE, at=NOW if latest == "reservation" else before)}
    assert list(judge_assignment(AssignmentRecords(record, None, own), NOW + LONGEST_PENDING)) == []
    late = judge_assignment(AssignmentRecords(record, None, own), NOW + LONGEST_PENDING + INSTANT)
    assert [violation.kind for violation in late] == ["two slots"]


def test_an_order_without_its_own_slot_may_be_assigned_one() -> None:
    record = {"_id": "assignment:1:o1", **reserved(at=NOW - LONGEST_PENDING)}
    own = {"_id": "o1", "status": "RESERVED", "items": [], "updatedAt": NOW - LONGEST_PENDING}
    assert list(judge_assignment(AssignmentRecords(record, None, own), NOW + INSTANT)) == []


def test_assignments_for_orders_of_other_systems_are_not_judged() -> None:
    record = {"_id": "assignment:1:o1", **reserved(at=NOW - timedelta(days=99))}
    assert list(judge_assignment(AssignmentRecords(record, None), NOW)) == []
