"""Shows an order's timeline: in 80 columns for people, as JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from operations.reading.participant_records import recorded_states
from operations.timeline.release import holds_something
from operations.timeline.timeline import StepKind, StepOutcome, TimelineRecords, TimelineStep, open_steps
from shared.clock import to_rfc3339
from shared.printable import printable

MARKS: Mapping[StepOutcome, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "failed": ("✗", "red"),
    "unknown": ("?", "yellow"),
    "open": ("…", "cyan"),
}
_WITHOUT_MARK: tuple[StepKind, ...] = ("state", "message", "wait", "retry")
"""Steps that need no mark when they succeeded."""

_STATUS_STYLES = {"CONFIRMED": "green", "COMPLETED": "green", "CANCELLED": "red", "FAILED": "red"}
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def show(records: TimelineRecords, steps: Sequence[TimelineStep], console: Console, now: datetime) -> None:
    """Print each step with its start (relative to the first), its duration and its service; then the open steps."""
    console.print(Group(*_head(records, steps)))
    if steps:
        console.print(_lines(steps))
    for step in open_steps(steps):
        console.print(_waiting(step, now))


def _head(records: TimelineRecords, steps: Sequence[TimelineStep]) -> Iterator[RenderableType]:
    order = records.order
    if order is None:
        yield Text(f"order {printable(records.order_id)}  is unknown to the order service, but not to others", "yellow")
        yield Text(recorded_states(records.by_participant))
        if holds_something(records):
            yield Text(f"`ordersaga order release {printable(records.order_id)}` returns what is held")
        return
    status = str(order.get("status"))
    settled = "settled" if order.get("settled") else "not settled"
    yield Text.assemble(
        f"order {printable(records.order_id)}  ",
        (printable(status), f"bold {_STATUS_STYLES.get(status, 'cyan')}"),
        f", {settled}",
    )
    if steps:
        began, over = steps[0].at, max(step.until or step.at for step in steps)
        yield Text(f"began {to_rfc3339(began)}, last step after {duration((over - began).total_seconds())}", "dim")
    if reason := order.get("failureReason"):
        yield Text(f"reason: {printable(str(reason))}", "red")
    if traceparent := order.get("traceparent"):
        yield Text(f"traceparent: {printable(str(traceparent))}", "dim")


def _lines(steps: Sequence[TimelineStep]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("service", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("step", overflow="fold")
    began = steps[0].at
    for step in steps:
        table.add_row(
            duration((step.at - began).total_seconds()),
            duration(step.seconds) if step.seconds is not None else "",
            service_names(step),
            _mark(step),
            _description(step),
        )
    return table


def service_names(step: TimelineStep) -> str:
    """Return the service of a step; for a message, sender and receiver."""
    return f"{_SHORT.get(step.lane, step.lane)} → {_SHORT.get(step.to, step.to)}" if step.to else step.lane


_SHORT = {"provisioning": "server"}
"""Abbreviations for messages, where two names share a column."""


def _mark(step: TimelineStep) -> Text:
    if step.outcome == "ok" and step.kind in _WITHOUT_MARK:
        return Text()
    return Text(*MARKS[step.outcome])


def _description(step: TimelineStep) -> Text:
    text = Text(printable(step.title), "dim" if step.kind == "message" else "")
    if step.status is not None:
        text.append(f"  {printable(step.status)}", _STATUS_STYLES.get(step.status, "cyan"))
    if step.detail:
        text.append(f"\n{printable(step.detail)}", "dim")
    if step.letter is not None and step.kind == "dead letter":
        text.append(f"\nordersaga dead-letters show {step.letter}", "dim")
    return text


def _waiting(step: TimelineStep, now: datetime) -> Text:
    since = duration(max(0.0, (now - step.at).total_seconds()))
    text = Text.assemble(("waits for ", "cyan"), f"{step.lane}: {printable(step.title)}", f", for {since}")
    if step.due is not None:
        left = (step.due - now).total_seconds()
        text.append(f", due in {duration(left)}" if left >= 0 else f", overdue by {duration(-left)}")
    return text


def duration(seconds: float) -> str:
    """Format a duration: below two minutes to the millisecond, else in its two largest units."""
    if seconds < 120:
        return f"{seconds:.3f} s"
    whole = round(seconds)
    number = next(n for n, (size, _) in enumerate(_UNITS) if whole >= size)
    (size, unit), (smaller, name) = _UNITS[number], _UNITS[number + 1]
    return f"{whole // size}{unit} {whole % size // smaller:02}{name}"
