"""Dead letters in the simulation: what a defect makes one is found, although replays heal it."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from order_service.saga import Saga
from shared.bus import Envelope
from shared.errors import PoisonError
from shared.services import SERVICES
from simulation import plan, world
from simulation.broker import SimulatedBroker
from simulation.entropy import BEGINNING
from simulation.operators import NotReplayableError, Operators, spoiled
from simulation.plan import Fault

PLAN = replace(plan.draw(16), faults=()).keep((1, 2), ())


def dead(headers: dict[str, Any]) -> Envelope:
    return Envelope(b"{}", "", "", "order.created", "o1", "m1", headers=headers)


def test_a_message_that_a_handler_refuses_is_found_although_its_replay_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = Saga.advance
    refused: list[Any] = []

    def refuse_once(saga: Saga, order: Any, event: Any, now: Any) -> Any:
        if type(event).__name__ == "StockReserved" and not refused:
            refused.append(event)
            raise PoisonError("a defect")
        return advance(saga, order, event, now)

    monkeypatch.setattr(Saga, "advance", refuse_once)
    violations = world.run(PLAN).violations
    assert refused
    assert violations == (f"poisoned: stock.reserved of order {refused[0].order_id}: PoisonError a defect",)


def test_a_message_that_is_a_dead_letter_after_every_replay_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    death = {"queue": SERVICES["inventory"].inbox, "reason": "delivery_limit"}
    letter = dead({"x-death": [death], "x-first-death-reason": "delivery_limit"})
    monkeypatch.setattr(SimulatedBroker, "dead_letters", lambda _broker: [letter])
    assert world.run(PLAN).violations == ("dead letter: order.created of order o1: delivery_limit",)


@pytest.mark.parametrize(
    ("headers", "poisoned"),
    [
        ({"x-error-type": "KeyError"}, True),
        ({"x-error-type": "DatabaseUnavailableError"}, False),
        ({"x-first-death-reason": "delivery_limit"}, False),
    ],
    ids=str,
)
def test_only_a_defect_poisons_a_message(headers: dict[str, str], poisoned: bool) -> None:
    assert world.is_poisoned(dead(headers)) is poisoned


def test_messages_that_are_spoiled_on_their_way_are_edited_and_replayed() -> None:
    faults = [Fault(number, 0.0, plan.SPOIL, service, skip=number % 3) for number, service in enumerate(SPOILED)]
    outcome = world.run(replace(PLAN, faults=tuple(faults)))
    assert outcome.violations == ()
    assert len(outcome.happened) == len(faults)
    edits = [line for line in outcome.trace if "edit and replay" in line]
    assert len(edits) >= len(faults)


SPOILED = ("inventory", "inventory", "payment", "payment", "order", "order")


def test_a_value_is_spoiled_that_no_handler_can_read_and_a_body_without_one_is_cut() -> None:
    created = Envelope(CREATED, "", "", "order.created", "o1", "m1")
    assert orjson.loads(spoiled(created)) == {**orjson.loads(CREATED), "userId": {"spoiled": True}}
    release = Envelope(b'{"orderId":"o1"}', "", "", "stock.release", "o1", "m1")
    assert spoiled(release) == b'{"orderI'


CREATED = orjson.dumps(
    {"orderId": "o1", "userId": "u1", "items": [{"productId": "p1", "quantity": 1, "price": 100}], "totalAmount": 100}
)


def test_a_letter_that_came_from_no_inbox_cannot_be_replayed() -> None:
    with pytest.raises(NotReplayableError):
        Operators().replay(dead({"x-error-type": "KeyError"}), {}, BEGINNING)
