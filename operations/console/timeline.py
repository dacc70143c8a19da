"""Draws an order's timeline as a graph of four lanes, one row per step. Pure: no I/O, no clock.

    offset    order  stock  payment  server
    0 ms        ●─────▶──────▶                 Order placed
    3 ms              ┃                        Reserved, 9 ms
    3 ms              ┃      ┃                 Charged, 31 ms
    12 ms       ●◀────┘      ┃                 Stock reserved

Rows are not to scale: an order may have steps milliseconds apart and others days apart. A step with a duration is a bar
from the row in which it began to the last row before its end.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from operations.timeline.timeline import LANES, Lane, StepKind, TimelineStep

Arrow = tuple[Lane, Lane]
"""The lanes of a message's sender and receiver."""

Incoming = Mapping[datetime | None, TimelineStep]
"""Messages to the order, by the time at which it received them."""

_STRONGEST: Mapping[StepKind, int] = {
    "work": 1,
    "wait": 2,
    "compensation": 3,
    "retry": 4,
    "replay": 5,
    "dead letter": 6,
}
"""The precedence of overlapping bars."""


@dataclass(slots=True)
class TimelineCell:
    """The content of one row in one lane: a part of a bar, a mark, a part of a message's arrow."""

    bar: str = ""
    begins: bool = False
    mark: str = ""
    line: str = ""

    @property
    def classes(self) -> str:
        """The classes for the style sheet."""
        bar = f"bar bar-{self.bar.replace(' ', '-')}" if self.bar else ""
        return " ".join(part for part in (bar, "begins" if self.begins else "", self.line) if part)


@dataclass(slots=True)
class TimelineRow:
    """A step, its seconds after the first one, and its cells by lane."""

    step: TimelineStep
    offset: float
    arrows: Sequence[Arrow] = ()
    cells: dict[Lane, TimelineCell] = field(default_factory=lambda: {lane: TimelineCell() for lane in LANES})

    @property
    def messages(self) -> str:
        """The messages that the row draws, in words; empty without any."""
        senders = sorted({sender for sender, _ in self.arrows}, key=LANES.index)
        receivers = sorted({receiver for _, receiver in self.arrows}, key=LANES.index)
        return f"message from {' and '.join(senders)} to {' and '.join(receivers)}" if self.arrows else ""


def draw(steps: Sequence[TimelineStep]) -> list[TimelineRow]:
    """Return the rows of the graph, in chronological order."""
    shown, arrows = _with_their_messages(steps)
    if not shown:
        return []
    offsets = [(step.at - shown[0].at).total_seconds() for step in shown]
    rows = [TimelineRow(*row) for row in zip(shown, offsets, arrows, strict=True)]
    for index, row in enumerate(rows):
        _draw_bar(rows, index)
        _draw_mark(row)
        for arrow in row.arrows:
            _draw_arrow(row, arrow)
    return rows


def _with_their_messages(steps: Sequence[TimelineStep]) -> tuple[list[TimelineStep], list[list[Arrow]]]:
    """Draw the message that caused an order's step, or else those that it sent, in the row of the step.

    A row holds messages of one direction only, or their arrows would overlap; other messages get separate rows.
    """
    incoming = {step.until: step for step in steps if step.kind == "message" and step.to == "order"}
    states = {step.at for step in steps if step.kind == "state"}
    shown: list[TimelineStep] = []
    arrows: list[list[Arrow]] = []
    for step in steps:
        if step.kind == "message" and _belongs_to_state(step, states, incoming):
            continue
        shown.append(step)
        arrows.append(_arrows_of(step, steps, incoming))
    return shown, arrows


def _belongs_to_state(message: TimelineStep, states: Collection[datetime], incoming: Incoming) -> bool:
    if message.to == "order":
        return message.until in states and incoming[message.until] is message
    return message.at in states and message.at not in incoming


def _arrows_of(step: TimelineStep, steps: Sequence[TimelineStep], incoming: Incoming) -> list[Arrow]:
    if step.kind == "message":
        return [(step.lane, step.to)] if step.to else []
    if step.kind != "state":
        return []
    if (came := incoming.get(step.at)) is not None:
        return [(came.lane, "order")]
    sent = [other for other in steps if other.kind == "message" and other.lane == "order" and other.at == step.at]
    return [("order", message.to) for message in sent if message.to]


def _draw_bar(rows: Sequence[TimelineRow], index: int) -> None:
    step = rows[index].step
    if step.kind == "message" or (step.until is None and not step.open):
        return
    last = index
    for later in range(index + 1, len(rows)):
        if step.until is not None and rows[later].step.at >= step.until:
            break
        last = later
    for covered in range(index, last + 1):
        cell = rows[covered].cells[step.lane]
        if _STRONGEST.get(step.kind, 0) > _STRONGEST.get(_kind(cell), 0):
            cell.bar = step.kind
            cell.begins = covered == index


def _kind(cell: TimelineCell) -> StepKind:
    return cell.bar or "state"  # type: ignore[return-value]  # bars are only set to kinds


def _draw_mark(row: TimelineRow) -> None:
    if row.step.kind == "message":
        return
    row.cells[row.step.lane].mark = row.step.outcome


def _draw_arrow(row: TimelineRow, arrow: Arrow) -> None:
    start, end = (LANES.index(lane) for lane in arrow)
    to_the_right = end > start
    for place in range(min(start, end), max(start, end) + 1):
        cell = row.cells[LANES[place]]
        if place == start:
            line = "from-right" if to_the_right else "from-left"
        elif place == end:
            line = "into-right" if to_the_right else "into-left"
        else:
            line = "through"
        # One message may end where another passes through.
        cell.line = f"{cell.line} {line}".strip()
