"""Dead letters in the simulation: what a defect makes one is found, although replays heal it."""

from dataclasses import replace
from typing import Any

import pytest

from order_service.saga import Saga
from shared import topology
from shared.bus import Envelope
from shared.errors import PoisonError
from simulation import plan, world
from simulation.broker import SimulatedBroker

PLAN = replace(plan.draw(16), faults=()).keep((1, 2), ())


def dead(headers: dict[str, str]) -> Envelope:
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
    letter = dead({"x-first-death-queue": topology.DEAD_LETTERS, "x-first-death-reason": "delivery_limit"})
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
