"""An order's story, from what the services have recorded: who did what, when, for how long, and what is waited for.

    order         ●───────────────●──────────●            states of the order
    stock         ▐reserving▌─────┘                       work, with the messages between the lanes
    payment       ▐charging─────────▌────────┘
    provisioning                     ▐in line▌●check ●buy ✗ ▐pause▌ …

Pure: no I/O and no clock; a step that goes on has no end yet. What a record does not tell is left out, never guessed:
records of an older version, or of an order half-way, make a shorter story.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from shared.clock import to_rfc3339
from shared.topology import INVENTORY_INBOX, ORDER_INBOX, PAYMENT_INBOX, PROVISIONING_INBOX

Document = dict[str, Any]
Lane = Literal["order", "stock", "payment", "provisioning"]
Kind = Literal["state", "work", "message", "attempt", "wait", "compensation", "retry", "dead letter", "replay"]
Outcome = Literal["ok", "failed", "unknown", "open"]

LANES: tuple[Lane, ...] = ("order", "stock", "payment", "provisioning")

LANE_OF_QUEUE: Mapping[str, Lane] = {
    ORDER_INBOX: "order",
    INVENTORY_INBOX: "stock",
    PAYMENT_INBOX: "payment",
    PROVISIONING_INBOX: "provisioning",
}

UNSOLVED = ("dead", "replaying", "pending")
"""The states of a dead letter that somebody may still have to do something about."""


class Records(NamedTuple):
    """All that is recorded about one order, as it is stored; the letters without their bodies."""

    order_id: str
    order: Document | None
    reservation: Document | None = None
    payment: Document | None = None
    charge: Document | None = None
    job: Document | None = None
    letters: Sequence[Document] = ()

    @property
    def exist(self) -> bool:
        """Whether anything is known under the order's id."""
        return any(self[1:])


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened at a moment, or from `at` to `until`; `outcome` open means that it goes on.

    `to` is the lane that a message went to. `due` is when what is waited for is to happen by itself, `status` the
    order's status from here on, `letter` the id of the dead letter that the step is about.
    """

    at: datetime
    lane: Lane
    kind: Kind
    title: str
    detail: str | None = None
    outcome: Outcome = "ok"
    until: datetime | None = None
    to: Lane | None = None
    due: datetime | None = None
    status: str | None = None
    letter: str | None = None

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return self.outcome == "open"

    @property
    def seconds(self) -> float | None:
        """How long it took; None for a moment, and for what goes on."""
        return (self.until - self.at).total_seconds() if self.until else None

    def as_json(self) -> dict[str, Any]:
        """The step as a JSON document shows it; what does not apply is null."""
        return {
            "at": to_rfc3339(self.at),
            "until": to_rfc3339(self.until) if self.until else None,
            "seconds": self.seconds,
            "lane": self.lane,
            "to": self.to,
            "kind": self.kind,
            "title": self.title,
            "detail": self.detail,
            "outcome": self.outcome,
            "status": self.status,
            "due": to_rfc3339(self.due) if self.due else None,
            "deadLetter": self.letter,
        }


def story(records: Records) -> list[Step]:
    """Return the steps in the order in which they began; empty where nothing is recorded."""
    told = [*_letters(records.letters)]
    if records.order is not None:
        course = _Course(records.order)
        told += _states(course)
        told += _messages(course, records)
        told += _part(course, STOCK, records.reservation)
        told += _part(course, PAYMENT, records.payment)
        told += _look_ups(records.payment)
        told += _provisioning(course, records.job)
        told += _waits_of_the_order(course)
    return sorted(told, key=lambda step: (step.at, _rank(step), LANES.index(step.lane)))


def waited_for(steps: Iterable[Step]) -> list[Step]:
    """Return what goes on at this moment: what the order waits for, and since when."""
    return [step for step in steps if step.open]


_FIRST = ("attempt", "heard", "state", "sent", "work", "compensation", "wait", "retry", "dead letter", "replay")
"""What is told first of things of the same moment: a cause before its consequence."""


def _rank(step: Step) -> int:
    if step.kind == "message":
        return _FIRST.index("heard" if step.to == "order" else "sent")
    return _FIRST.index(step.kind)


# --- The order's own course. ---


class Entry(NamedTuple):
    """One line of the order's history, with the status before it."""

    at: datetime
    event: str
    status: str
    before: str | None
    message: str | None

    @property
    def moved(self) -> bool:
        """Whether the order's status changed with it."""
        return self.status != self.before


class _Course:
    """The order's history, and what can be asked about it."""

    def __init__(self, order: Document) -> None:
        self.order = order
        self.entries = _entries(order)
        self.settled = bool(order.get("settled"))
        self.status = str(order.get("status"))

    @property
    def placed_at(self) -> datetime | None:
        return _moment(self.order, "createdAt") or (self.entries[0].at if self.entries else None)

    def first(self, *events: str, since: datetime | None = None) -> Entry | None:
        """The first line that tells of one of these events."""
        return next((e for e in self.entries if e.event in events and (since is None or e.at >= since)), None)

    @property
    def undone(self) -> Entry | None:
        """The line from which on everything was to be returned."""
        return next((entry for entry in self.entries if _begins_compensation(entry)), None)

    @property
    def runs(self) -> list[datetime]:
        """When the order's server was asked for: the first time, and with every retry."""
        return [entry.at for entry in self.entries if entry.status == "PROVISIONING" and entry.moved]


def _entries(order: Document) -> list[Entry]:
    found: list[Entry] = []
    for line in order.get("history") or ():
        at = _moment(line, "at")
        if at is None:
            continue
        before = found[-1].status if found else None
        found.append(Entry(at, str(line.get("event")), str(line.get("status")), before, line.get("message")))
    return found


def _begins_compensation(entry: Entry) -> bool:
    if entry.status == "CANCELLED":
        return entry.moved
    return entry.status == "FAILED" and entry.event in ("order.refund_requested", "order.deadline_passed")


def _states(course: _Course) -> Iterator[Step]:
    for entry in course.entries:
        outcome: Outcome = "failed" if entry.moved and entry.status in ("CANCELLED", "FAILED") else "ok"
        title = EVENTS.get(entry.event, entry.event)
        yield Step(entry.at, "order", "state", title, entry.message, outcome, status=entry.status)


EVENTS: Mapping[str, str] = {
    "order.created": "Order placed",
    "order.cancel_requested": "Cancellation asked for",
    "order.retry_requested": "Retry asked for",
    "order.refund_requested": "Refund asked for",
    "order.deadline_passed": "Time is over",
    "stock.reserved": "Stock is reserved",
    "stock.reservation_failed": "Stock was refused",
    "stock.released": "Stock is back",
    "payment.processed": "Payment is taken",
    "payment.failed": "Payment was refused",
    "payment.refunded": "Payment is back",
    "provisioning.progress": "Server is under way",
    "provisioning.completed": "Server is ready",
    "provisioning.failed": "Server could not be had",
}
"""The events of an order's history, in words."""


def _waits_of_the_order(course: _Course) -> Iterator[Step]:
    """What the order itself waits for, besides the answers that the other lanes owe it."""
    order, since = course.order, course.entries[-1].at if course.entries else course.placed_at
    if since is None or course.settled:
        return
    due = _moment(order, "dueAt")
    if course.status == "FAILED" and not order.get("compensating"):
        text = "Retry or refund; the money goes back by itself when the hold ends"
        yield Step(since, "order", "wait", "An operator's decision", text, "open", due=due)
    elif course.status == "PENDING":
        missing = " and ".join(part.lane for part in (STOCK, PAYMENT) if order.get(part.field) == "PENDING")
        deadline = _moment(order, "deadline")
        text = "Cancelled when the time is over"
        yield Step(since, "order", "wait", f"Answer of {missing or 'nobody'}", text, "open", due=deadline)
    if order.get("unpublished") and _moment(order, "updatedAt"):
        text = "Messages that a crash or an outage left behind"
        yield Step(order["updatedAt"], "order", "wait", "Messages to be published", text, "open", due=due)


# --- Messages. ---


def _messages(course: _Course, records: Records) -> Iterator[Step]:
    for entry in course.entries:
        yield from (
            Step(entry.at, "order", "message", routing_key, to=lane) for routing_key, lane in _sent(course, entry)
        )
        source = _sender(entry.event)
        if source is not None:
            sent = min(_decided_at(entry.event, records) or entry.at, entry.at)
            yield Step(sent, source, "message", entry.event, until=entry.at, to="order")


def _sender(event: str) -> Lane | None:
    match event.partition(".")[0]:
        case "stock":
            return "stock"
        case "payment":
            return "payment"
        case "provisioning":
            return "provisioning"
    return None


def _sent(course: _Course, entry: Entry) -> Iterator[tuple[str, Lane]]:
    """What the order service sent on its way out of this line of the history."""
    if entry.event == "order.created":
        yield from (("order.created", "stock"), ("order.created", "payment"))
    elif entry.event == "order.cancel_requested" and entry.status == "PROVISIONING":
        yield ("provisioning.cancel", "provisioning")
    elif entry.status == "PROVISIONING" and entry.moved:
        yield ("provisioning.requested", "provisioning")
    if entry is course.undone:
        for part in (STOCK, PAYMENT):
            if not _known_gone(course, part, entry.at):
                yield (part.undo, part.lane)


def _decided_at(event: str, records: Records) -> datetime | None:
    """When the sender had decided what it then said, as far as its record still tells."""
    match event:
        case "stock.reserved" | "stock.reservation_failed":
            return _moment(records.reservation, "createdAt")
        case "stock.released":
            return _moment(records.reservation, "updatedAt")
        case "payment.refunded":
            return _moment(records.payment, "updatedAt")
        case "payment.processed" | "payment.failed" if (records.payment or {}).get("status") in ("PROCESSED", "FAILED"):
            return _moment(records.payment, "updatedAt")
    return None


# --- Stock and payment: what is done, and undone. ---


class _Part(NamedTuple):
    """A participant of the saga that answers once to the order, and once more if the order is undone."""

    lane: Lane
    field: str
    doing: str
    done: str
    refused: str
    undo: str
    undoing: str
    undone: str
    done_event: str
    refused_event: str
    undone_event: str


STOCK = _Part(
    lane="stock",
    field="stockStatus",
    doing="Reserving",
    done="Reserved",
    refused="Refused",
    undo="stock.release",
    undoing="Releasing",
    undone="Released",
    done_event="stock.reserved",
    refused_event="stock.reservation_failed",
    undone_event="stock.released",
)
PAYMENT = _Part(
    lane="payment",
    field="paymentStatus",
    doing="Charging",
    done="Charged",
    refused="Declined",
    undo="payment.refund",
    undoing="Refunding",
    undone="Refunded",
    done_event="payment.processed",
    refused_event="payment.failed",
    undone_event="payment.refunded",
)


def _known_gone(course: _Course, part: _Part, at: datetime) -> bool:
    """Whether the order knew by then that there was nothing to undo."""
    gone = course.first(part.refused_event, part.undone_event)
    return gone is not None and gone.at <= at


def _part(course: _Course, part: _Part, record: Document | None) -> Iterator[Step]:
    began = course.placed_at
    if began is None:
        return
    undone = course.undone
    compensating = undone is not None and not _known_gone(course, part, undone.at)
    answer = course.first(part.done_event, part.refused_event)
    if answer is not None:
        yield _answered(part, began, answer, record)
    elif not course.settled and not compensating and course.order.get(part.field) == "PENDING":
        yield Step(began, part.lane, "work", part.doing, _standing(record), "open")
    if undone is not None and compensating:
        yield _compensation(course, part, undone.at, record)


def _answered(part: _Part, began: datetime, answer: Entry, record: Document | None) -> Step:
    refused = answer.event == part.refused_event
    # The record says when it was decided; the history, when the order heard of it.
    decided = _moment(record, "createdAt") if part is STOCK else None
    until = max(began, min(decided or answer.at, answer.at))
    title = part.refused if refused else part.done
    return Step(began, part.lane, "work", title, answer.message, "failed" if refused else "ok", until)


def _compensation(course: _Course, part: _Part, since: datetime, record: Document | None) -> Step:
    end = course.first(part.undone_event, part.refused_event, since=since)
    if end is None:
        going_on = not course.settled
        outcome: Outcome = "open" if going_on else "unknown"
        return Step(since, part.lane, "compensation", part.undoing, _standing(record), outcome)
    returned = end.event == part.undone_event and (record or {}).get("status") != "VOIDED"
    title = part.undone if returned else "Nothing to return"
    return Step(since, part.lane, "compensation", title, until=end.at)


def _standing(record: Document | None) -> str:
    """What the participant's record says at this moment, for who wonders why it does not answer."""
    return f"Its record says {record.get('status')}" if record else "It has no record of the order yet"


def _look_ups(payment: Document | None) -> Iterator[Step]:
    """The wait for an outcome that the gateway has not told."""
    due, since = _moment(payment, "nextLookupAt"), _moment(payment, "updatedAt")
    if payment is None or due is None or since is None:
        return
    count = payment.get("lookups", 0)
    text = f"Looked up {count} {'time' if count == 1 else 'times'}"
    yield Step(since, "payment", "wait", "The gateway's answer is not known", text, "open", due=due)


# --- Provisioning. ---


def _provisioning(course: _Course, job: Document | None) -> Iterator[Step]:
    runs = course.runs
    attempts = [attempt for attempt in (job or {}).get("attempts") or () if _moment(attempt, "at")]
    for number, began in enumerate(runs):
        following = runs[number + 1] if number + 1 < len(runs) else None
        of_run = [a for a in attempts if a["at"] >= began and (following is None or a["at"] < following)]
        yield from _in_line(began, of_run, job)
        yield from _attempts(of_run)
    if runs and course.status == "PROVISIONING":
        yield _now(job, runs[-1])


def _in_line(began: datetime, attempts: Sequence[Document], job: Document | None) -> Iterator[Step]:
    """The wait for the package's lock, until the run's first attempt at anything else."""
    first = next((attempt for attempt in attempts if attempt.get("step") != "lock"), None)
    if first is not None:
        yield Step(
            began, "provisioning", "wait", f"In line for package {(job or {}).get('package')}", until=first["at"]
        )


def _attempts(attempts: Sequence[Document]) -> Iterator[Step]:
    for attempt in attempts:
        outcome: Outcome = attempt["outcome"] if attempt.get("outcome") in ("ok", "failed") else "unknown"
        title = ATTEMPTS.get(str(attempt.get("step")), str(attempt.get("step")))
        yield Step(attempt["at"], "provisioning", "attempt", title, attempt.get("detail"), outcome)
    for failed, following in pairwise(attempts):
        if failed.get("outcome") == "failed" and failed.get("step") != "lock" and following["at"] > failed["at"]:
            yield Step(failed["at"], "provisioning", "retry", "Pause before the next attempt", until=following["at"])


ATTEMPTS: Mapping[str, str] = {
    "lock": "Wait for the package",
    "check": "Check addresses",
    "buy": "Buy",
    "verify": "Verify the address",
    "status": "Get credentials",
}
"""The steps of a job, in words."""


def _now(job: Document | None, asked_at: datetime) -> Step:
    """What provisioning is at, while the order waits for it."""
    if job is None:
        return Step(asked_at, "provisioning", "work", "Server", "It has no record of the order yet", "open")
    since = max(_moment(job, "updatedAt") or asked_at, asked_at)
    due = _moment(job, "dueAt")
    match job.get("state"):
        case "QUEUED":
            since = max(_moment(job, "waitingSince") or since, asked_at)
            return Step(since, "provisioning", "wait", f"In line for package {job.get('package')}", outcome="open")
        case "WAITING":
            return Step(since, "provisioning", "retry", "Next attempt", _purchase(job), "open", due=due)
        case "RUNNING":
            title = ATTEMPTS.get(str(job.get("step")), "Server")
            return Step(since, "provisioning", "work", title, _purchase(job), "open")
    return Step(since, "provisioning", "work", "Answer", _standing({"status": job.get("state")}), "open")


def _purchase(job: Document) -> str | None:
    """What is known of an attempt to buy without an answer."""
    purchase = job.get("purchase")
    if not purchase or purchase.get("answered", True):
        return None
    return f"Asked for {', '.join(purchase.get('asked', ()))}, without an answer: the provider may still be at it"


# --- Dead letters. ---


def _letters(letters: Iterable[Document]) -> Iterator[Step]:
    for letter in letters:
        lane = LANE_OF_QUEUE.get(str(letter.get("queue")), "order")
        last = _moment(letter, "lastFailedAt") or _moment(letter, "receivedAt")
        if last is not None:
            yield from _letter(letter, lane, last)


def _letter(letter: Document, lane: Lane, last: datetime) -> Iterator[Step]:
    letter_id, routing_key = str(letter.get("_id")), str(letter.get("routingKey") or "message")
    replays = letter.get("replays") or ()
    # A letter that died again after a replay has moved its last failure: the first death was before the first replay.
    died = min([last, *(r["at"] for r in replays if _moment(r, "at"))])
    first = _moment(letter, "firstFailedAt")
    if first is not None and first < died:
        times = f"{letter.get('attempts')} attempts"
        yield Step(first, lane, "retry", f"{routing_key} fails", times, "failed", died, letter=letter_id)
    outcome: Outcome = "open" if letter.get("status") in UNSOLVED else "failed"
    yield Step(died, lane, "dead letter", f"{routing_key} is a dead letter", _error(letter), outcome, letter=letter_id)
    for replay in replays:
        if _moment(replay, "at"):
            yield _replay(replay, lane, routing_key, letter_id)
    if (at := _moment(letter.get("discarded"), "at")) is not None:
        why = f"by {letter['discarded'].get('by')}: {letter['discarded'].get('why')}"
        yield Step(at, lane, "replay", f"{routing_key} discarded", why, letter=letter_id)


def _replay(replay: Document, lane: Lane, routing_key: str, letter_id: str) -> Step:
    outcomes: Mapping[str, Outcome] = {"handled": "ok", "dead": "failed", "pending": "open"}
    outcome = outcomes.get(str(replay.get("outcome")), "unknown")
    edited = "edited and replayed" if replay.get("edited") else "replayed"
    why = f"by {replay.get('by')}" + (f": {replay['why']}" if replay.get("why") else "")
    until = _moment(replay, "outcomeAt")
    return Step(replay["at"], lane, "replay", f"{routing_key} {edited}", why, outcome, until, letter=letter_id)


def _error(letter: Document) -> str:
    error = letter.get("error") or {}
    return f"{error.get('type') or 'unknown error'}: {error.get('message') or ''}".strip()


def _moment(record: Mapping[str, Any] | None, name: str) -> datetime | None:
    value = (record or {}).get(name)
    return value if isinstance(value, datetime) else None
