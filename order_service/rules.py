"""The notation of the saga's table: transitions, rules, and the functions that put typed rules into rows.

    row(*answers(PARTICIPANTS, done=…, refused=…, undone=…), on(CancelRequested, …))

A rule that does not take the event of its cell is a type error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from order_service.events import Event
from order_service.order import HistoryEntry, Order, Status
from order_service.participants import AnyParticipant, Done, Participant, Refused, Undone
from shared.contracts import Message


class Transition(NamedTuple):
    """The result of an event: the order afterwards, the messages to send, and the line in its history, if any."""

    order: Order
    messages: tuple[Message, ...] = ()
    entry: HistoryEntry | None = None


E = TypeVar("E", bound=Event)

Rule = Callable[[Order, Any, datetime], Transition | None]
"""The effect of an event on an order; None where the event means nothing to it."""

Cell = tuple[type[object], Rule]
Row = Mapping[type[object], Rule]
Table = Mapping[Status, Row]


class DoneRule(Protocol):
    """The effect of a participant's `done`."""

    def __call__(
        self, participant: Participant[Done, Refused, Undone], order: Order, answer: Done, now: datetime, /
    ) -> Transition | None:
        """Decide on the answer."""


class RefusedRule(Protocol):
    """The effect of a participant's `refused`."""

    def __call__(
        self, participant: Participant[Done, Refused, Undone], order: Order, answer: Refused, now: datetime, /
    ) -> Transition | None:
        """Decide on the answer."""


class UndoneRule(Protocol):
    """The effect of a participant's `undone`."""

    def __call__(
        self, participant: Participant[Done, Refused, Undone], order: Order, answer: Undone, now: datetime, /
    ) -> Transition | None:
        """Decide on the answer."""


def on(event: type[E], rule: Callable[[Order, E, datetime], Transition | None]) -> Cell:
    """Return the cell for an event that is no participant's answer."""
    return event, rule


def answers(
    participants: Iterable[AnyParticipant],
    *,
    done: DoneRule | None = None,
    refused: RefusedRule | None = None,
    undone: UndoneRule | None = None,
) -> Iterator[Cell]:
    """Return the cells for the answers of all participants; an answer without a rule is ignored."""
    for participant in participants:
        if done:
            yield participant.done, partial(done, participant)
        if refused:
            yield participant.refused, partial(refused, participant)
        if undone:
            yield participant.undone, partial(undone, participant)


def row(*cells: Cell) -> Row:
    """Return the row of one status."""
    return dict(cells)
