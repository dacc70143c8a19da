"""An order's timeline, built from the services' records: who did what, when, for how long, and what is pending.

    order         ●───────────────●──────────●            states of the order
    stock         ▐reserving▌─────┘                       work, with the messages between the lanes
    payment       ▐charging─────────▌────────┘
    provisioning                     ▐queued▌●check ●buy ✗ ▐pause▌ …

Pure: no I/O and no clock; an open step has no end. What the records do not show is left out, never guessed: records of
an older release, or of an order in progress, make a shorter timeline.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from operations.dead_letters.status import OPEN
from operations.jobs.wording import STEPS
from operations.reading.participant_records import (
    NO_RECORDS,
    PARTICIPANT_RECORDS,
    ByParticipant,
    ParticipantRecord,
)
from order_service.events import RefundPartRequested
from order_service.participants import FAILED, PAYMENT, PENDING, STOCK, AnyParticipant
from shared.clock import to_rfc3339
from shared.contracts import PartRefunded, PartRefundFailed, RefundPart, ReturnStock, StockReturned
from shared.money import to_json_number
from shared.topology import INBOXES, ORDER_INBOX, PROVISIONING_INBOX

Document = dict[str, Any]
Lane = str
"""Who does a step: order, provisioning, or a participant by its name."""
StepKind = Literal["state", "work", "message", "attempt", "wait", "compensation", "retry", "dead letter", "replay"]
StepOutcome = Literal["ok", "failed", "unknown", "open"]

LANES: tuple[Lane, ...] = ("order", *(row.participant.name for row in PARTICIPANT_RECORDS), "provisioning")

LANE_OF_QUEUE: Mapping[str, Lane] = {
    ORDER_INBOX: "order",
    **{
        inbox: row.participant.name
        for row in PARTICIPANT_RECORDS
        for inbox, messages in INBOXES.items()
        if row.participant.undo_type in messages
    },
    PROVISIONING_INBOX: "provisioning",
}


class TimelineRecords(NamedTuple):
    """Everything recorded about one order, as it is stored; dead letters come without their bodies."""

    order_id: str
    order: Document | None
    by_participant: ByParticipant = NO_RECORDS
    charge: Document | None = None
    job: Document | None = None
    letters: Sequence[Document] = ()

    @property
    def payment(self) -> Document | None:
        """The record of the payment."""
        return self.by_participant.get(PAYMENT.name)

    @property
    def exist(self) -> bool:
        """True if anything is recorded under the order's id."""
        return any(self[1:])


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """Something that happened at one time, or from `at` to `until`; an open step is still in progress.

    `to` is the receiver's lane of a message. `due` is when an open step ends without intervention, `status` is the
    order's status from this step on, `letter` is the id of the dead letter behind the step.
    """

    at: datetime
    lane: Lane
    kind: StepKind
    title: str
    detail: str | None = None
    outcome: StepOutcome = "ok"
    until: datetime | None = None
    to: Lane | None = None
    due: datetime | None = None
    status: str | None = None
    letter: str | None = None

    @property
    def open(self) -> bool:
        """True while the step is in progress."""
        return self.outcome == "open"

    @property
    def seconds(self) -> float | None:
        """The duration; None for a point in time and for an open step."""
        return (self.until - self.at).total_seconds() if self.until else None

    def as_json(self) -> dict[str, Any]:
        """Return the step as a JSON document shows it; fields that do not apply are null."""
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


def step_from_json(document: Mapping[str, Any]) -> TimelineStep:
    """Return the step that a JSON document shows."""
    names = ("lane", "kind", "title", "detail", "outcome", "to", "status")
    fields: dict[str, Any] = {name: document[name] for name in names}
    fields |= {name: datetime.fromisoformat(at) if (at := document[name]) else None for name in ("until", "due")}
    return TimelineStep(datetime.fromisoformat(document["at"]), letter=document["deadLetter"], **fields)


def build_timeline(records: TimelineRecords) -> list[TimelineStep]:
    """Return the steps by the time they began; empty if nothing is recorded."""
    steps = [*_letters(records.letters)]
    if records.order is not None:
        history = _OrderHistory(records.order)
        steps += _states(history)
        steps += _messages(history, records)
        for row in PARTICIPANT_RECORDS:
            steps += _work_of(row, history, records)
            steps += _fulfilment_of(row, history)
        steps += _lookups(records.payment)
        steps += _refunds(history)
        steps += _provisioning(history, records.job)
        steps += _waits_of_order(history)
    return sorted(steps, key=lambda step: (step.at, _rank(step), LANES.index(step.lane)))


def open_steps(steps: Iterable[TimelineStep]) -> list[TimelineStep]:
    """Return the steps in progress: what the order waits for, and since when."""
    return [step for step in steps if step.open]


_RANKS = ("attempt", "received", "state", "sent", "work", "compensation", "wait", "retry", "dead letter", "replay")
"""The order of simultaneous steps: a cause before its consequence."""


def _rank(step: TimelineStep) -> int:
    if step.kind == "message":
        return _RANKS.index("received" if step.to == "order" else "sent")
    return _RANKS.index(step.kind)


# --- The order's history. ---


class HistoryEntry(NamedTuple):
    """One entry of the order's history, with the status before it."""

    at: datetime
    event: str
    status: str
    before: str | None
    message: str | None

    @property
    def moved(self) -> bool:
        """True if this entry changed the order's status."""
        return self.status != self.before


class _OrderHistory:
    """The order's history, with queries on it."""

    def __init__(self, order: Document) -> None:
        self.order = order
        self.entries = _entries(order)
        self.settled = bool(order.get("settled"))
        self.status = str(order.get("status"))

    @property
    def placed_at(self) -> datetime | None:
        return _time(self.order, "createdAt") or (self.entries[0].at if self.entries else None)

    def first(self, *events: str, since: datetime | None = None) -> HistoryEntry | None:
        """Return the first entry of one of these events."""
        return next((e for e in self.entries if e.event in events and (since is None or e.at >= since)), None)

    @property
    def undone(self) -> HistoryEntry | None:
        """The entry that began the compensation."""
        return next((entry for entry in self.entries if _begins_compensation(entry)), None)

    @property
    def refunds(self) -> Sequence[Document]:
        """The refunds in part."""
        return self.order.get("refunds") or ()

    def fulfilments(self, participant: AnyParticipant) -> Iterator[tuple[HistoryEntry, HistoryEntry | None]]:
        """Yield each entry that made the order ask for the rest of a participant's part, with the answer, if any."""
        part = participant.on_fulfilment
        if part is None or self.order.get("fulfilment") is None:
            return
        fulfilled = "CONFIRMED" if self.order["fulfilment"] == "goods" else "COMPLETED"
        answers = (part.answer.routing_key, part.refused.routing_key)
        committed = self.order.get(participant.stored_field) == part.committed
        for entry in self.entries:
            if entry.moved and entry.status == fulfilled and entry.event not in answers:
                answer = next((e for e in self.entries if e.event in answers and e.at >= entry.at), None)
                if answer is not None or committed:
                    yield entry, answer

    @property
    def runs(self) -> list[datetime]:
        """The times of the provisioning requests: the first one, and one per retry."""
        return [entry.at for entry in self.entries if entry.status == "PROVISIONING" and entry.moved]


def _entries(order: Document) -> list[HistoryEntry]:
    found: list[HistoryEntry] = []
    for line in order.get("history") or ():
        at = _time(line, "at")
        if at is None:
            continue
        before = found[-1].status if found else None
        found.append(HistoryEntry(at, str(line.get("event")), str(line.get("status")), before, line.get("message")))
    return found


def _begins_compensation(entry: HistoryEntry) -> bool:
    if entry.status == "CANCELLED":
        return entry.moved
    return entry.status == "FAILED" and entry.event in ("order.refund_requested", "order.deadline_passed")


def _states(history: _OrderHistory) -> Iterator[TimelineStep]:
    for entry in history.entries:
        failed = (entry.moved and entry.status in ("CANCELLED", "FAILED")) or entry.event == PART_FAILED
        outcome: StepOutcome = "failed" if failed else "ok"
        title = EVENTS.get(entry.event) or re.sub(r"[._]", " ", entry.event).capitalize()
        yield TimelineStep(entry.at, "order", "state", title, entry.message, outcome, status=entry.status)


PART_REQUESTED, PART_REFUNDED, PART_FAILED, STOCK_RETURNED = (
    RefundPartRequested._field_defaults["routing_key"],
    PartRefunded.routing_key,
    PartRefundFailed.routing_key,
    StockReturned.routing_key,
)
"""The events of a refund in part. Each entry's message begins with the refund: `Refund <id>`."""

EVENTS: Mapping[str, str] = {
    "order.created": "Order placed",
    "order.cancel_requested": "Cancellation requested",
    "order.delivery_noted": "Delivered",
    "order.retry_requested": "Retry requested",
    "order.refund_requested": "Refund requested",
    "order.deadline_passed": "Deadline passed",
    PART_REQUESTED: "Refund in part requested",
    PART_REFUNDED: "Refunded in part",
    PART_FAILED: "Refund in part failed",
    STOCK_RETURNED: "Units put back",
    "provisioning.progress": "Provisioning in progress",
    "provisioning.completed": "Server ready",
}
"""Titles for the events of an order's history; all others have their routing key's words: "Stock reserved"."""


def _waits_of_order(history: _OrderHistory) -> Iterator[TimelineStep]:
    """Yield what the order itself waits for, besides the answers shown in the other lanes."""
    order, since = history.order, history.entries[-1].at if history.entries else history.placed_at
    if since is None or history.settled:
        return
    due = _time(order, "dueAt")
    if history.status == "FAILED" and not order.get("compensating"):
        text = "Retry or refund; the money is refunded automatically when the hold ends"
        yield TimelineStep(since, "order", "wait", "Operator's decision", text, "open", due=due)
    elif history.status == "PENDING":
        participants = (row.participant for row in PARTICIPANT_RECORDS)
        missing = " and ".join(p.name for p in participants if order.get(p.stored_field) == PENDING)
        deadline = _time(order, "deadline")
        text = "Cancelled at the deadline"
        yield TimelineStep(
            since, "order", "wait", f"Answer from {missing or 'no participant'}", text, "open", due=deadline
        )
    if order.get("unpublished") and _time(order, "updatedAt"):
        text = "Left unpublished by a crash or an outage"
        yield TimelineStep(order["updatedAt"], "order", "wait", "Messages to publish", text, "open", due=due)


# --- Messages. ---


def _messages(history: _OrderHistory, records: TimelineRecords) -> Iterator[TimelineStep]:
    for entry in history.entries:
        yield from (
            TimelineStep(entry.at, "order", "message", routing_key, to=lane)
            for routing_key, lane in _sent(history, entry)
        )
        source = _sender(entry.event)
        if source is not None:
            sent = min(_decided_at(entry.event, records) or entry.at, entry.at)
            yield TimelineStep(sent, source, "message", entry.event, until=entry.at, to="order")


def _sender(event: str) -> Lane | None:
    if event.startswith("provisioning."):
        return "provisioning"
    if event in (PART_REFUNDED, PART_FAILED, STOCK_RETURNED, *_FULFILMENT_ANSWERS):
        return event.partition(".")[0]
    row = _row_of(event)
    return row.participant.name if row else None


_FULFILMENT_ANSWERS = frozenset(
    answer.routing_key
    for row in PARTICIPANT_RECORDS
    if (part := row.participant.on_fulfilment)
    for answer in (part.answer, part.refused)
)


def _row_of(event: str) -> ParticipantRecord | None:
    """Return the participant whose answer the event is."""
    return next((row for row in PARTICIPANT_RECORDS if event in row.participant.answer_keys), None)


def _sent(history: _OrderHistory, entry: HistoryEntry) -> Iterator[tuple[str, Lane]]:
    """Yield what the order service sent with this entry."""
    if entry.event == "order.created":
        yield from (("order.created", row.participant.name) for row in PARTICIPANT_RECORDS)
    elif entry.event == "order.cancel_requested" and entry.status == "PROVISIONING":
        yield ("provisioning.cancel", "provisioning")
    elif entry.status == "PROVISIONING" and entry.moved:
        yield ("provisioning.requested", "provisioning")
    elif entry.event == PART_REQUESTED:
        yield (RefundPart.routing_key, PAYMENT.name)
    elif entry.event == PART_REFUNDED and any(r.get("restock") and _is_about(entry, r) for r in history.refunds):
        yield (ReturnStock.routing_key, STOCK.name)
    yield from _rest_asked_for(history, entry)
    if entry is history.undone:
        for row in PARTICIPANT_RECORDS:
            if not _nothing_to_undo(history, row.participant, entry.at):
                yield (row.participant.undo_type.routing_key, row.participant.name)


def _rest_asked_for(history: _OrderHistory, entry: HistoryEntry) -> Iterator[tuple[str, Lane]]:
    for row in PARTICIPANT_RECORDS:
        part = row.participant.on_fulfilment
        if part and any(asked is entry for asked, _ in history.fulfilments(row.participant)):
            yield (part.command_type.routing_key, row.participant.name)


def _decided_at(event: str, records: TimelineRecords) -> datetime | None:
    """Return when the sender made the decision that it then reported, if its record still shows that."""
    row = _row_of(event)
    if row is None:
        return None
    participant, record = row.participant, records.by_participant.get(row.participant.name)
    if event == participant.undone.routing_key:
        return _time(record, "updatedAt")
    if row.created_when_decided:
        return _time(record, "createdAt")
    is_latest = row.state(records.by_participant) in (participant.succeeded, FAILED)
    return _time(record, "updatedAt") if is_latest else None


# --- The participants: do and undo. ---


def _nothing_to_undo(history: _OrderHistory, participant: AnyParticipant, at: datetime) -> bool:
    """Return whether the order knew by then that there was nothing to undo."""
    gone = history.first(participant.refused.routing_key, participant.undone.routing_key)
    return gone is not None and gone.at <= at


def _work_of(row: ParticipantRecord, history: _OrderHistory, records: TimelineRecords) -> Iterator[TimelineStep]:
    participant, began = row.participant, history.placed_at
    if began is None:
        return
    undone = history.undone
    compensating = undone is not None and not _nothing_to_undo(history, participant, undone.at)
    answer = history.first(participant.done.routing_key, participant.refused.routing_key)
    if answer is not None:
        yield _answered(participant, began, answer, records)
    elif not history.settled and not compensating and history.order.get(participant.stored_field) == PENDING:
        status = _recorded_status(row.state(records.by_participant))
        yield TimelineStep(began, participant.name, "work", participant.wording.doing, status, "open")
    if undone is not None and compensating:
        yield _compensation(row, history, undone.at, records)


def _answered(
    participant: AnyParticipant, began: datetime, answer: HistoryEntry, records: TimelineRecords
) -> TimelineStep:
    refused = answer.event == participant.refused.routing_key
    # The record has the time of the decision, the history the time at which the order received it.
    until = max(began, min(_decided_at(answer.event, records) or answer.at, answer.at))
    if refused:
        return TimelineStep(
            began, participant.name, "work", participant.wording.refused, answer.message, "failed", until
        )
    # A message says that less than usual was done: the card was authorised, not charged.
    title = answer.message or participant.wording.done
    return TimelineStep(began, participant.name, "work", title, until=until)


def _fulfilment_of(row: ParticipantRecord, history: _OrderHistory) -> Iterator[TimelineStep]:
    """Yield what a participant that had only committed itself did once the order was fulfilled."""
    part = row.participant.on_fulfilment
    if part is None:
        return
    for entry, answer in history.fulfilments(row.participant):
        lane, refused = row.participant.name, answer is not None and answer.event == part.refused.routing_key
        if answer is None:
            yield TimelineStep(entry.at, lane, "work", part.doing, outcome="open")
        elif refused:
            yield TimelineStep(entry.at, lane, "work", part.failed, answer.message, "failed", answer.at)
        else:
            yield TimelineStep(entry.at, lane, "work", part.finished, until=answer.at)


def _compensation(
    row: ParticipantRecord, history: _OrderHistory, since: datetime, records: TimelineRecords
) -> TimelineStep:
    participant, state = row.participant, row.state(records.by_participant)
    end = history.first(participant.undone.routing_key, participant.refused.routing_key, since=since)
    if end is None:
        outcome: StepOutcome = "unknown" if history.settled else "open"
        title = participant.wording.undoing
        return TimelineStep(since, participant.name, "compensation", title, _recorded_status(state), outcome)
    returned = end.event == participant.undone.routing_key and state not in participant.provisional
    title = participant.wording.undone if returned else "Nothing to return"
    return TimelineStep(since, participant.name, "compensation", title, until=end.at)


def _recorded_status(status: str | None) -> str:
    """Describe the current record of a service, which may explain why no answer has come."""
    return "No record of the order yet" if status is None else f"Recorded status: {status}"


def _lookups(payment: Document | None) -> Iterator[TimelineStep]:
    """Yield the wait for a charge whose outcome the gateway has not confirmed."""
    due, since = _time(payment, "nextLookupAt"), _time(payment, "updatedAt")
    if payment is None or due is None or since is None:
        return
    count = payment.get("lookups", 0)
    text = f"Looked up {count} {'time' if count == 1 else 'times'}"
    yield TimelineStep(since, "payment", "wait", "Gateway outcome unknown", text, "open", due=due)


# --- Refunds in part. ---


def _refunds(history: _OrderHistory) -> Iterator[TimelineStep]:
    for refund in history.refunds:
        since = _time(refund, "createdAt")
        if since is None:
            continue
        answers = [entry for entry in history.entries if _is_about(entry, refund)]
        money = next((entry for entry in answers if entry.event in (PART_REFUNDED, PART_FAILED)), None)
        yield _money_of(refund, since, money)
        if money is not None and refund.get("restock") and refund.get("status") == "REFUNDED":
            back = next((entry for entry in answers if entry.event == STOCK_RETURNED), None)
            units = sum(item.get("quantity", 0) for item in refund.get("items") or ())
            yield _closing(money.at, STOCK.name, f"Put {units} units back", back)


def _money_of(refund: Document, since: datetime, answer: HistoryEntry | None) -> TimelineStep:
    title = f"Refund {to_json_number(refund.get('amount') or 0)}"
    step = _closing(since, PAYMENT.name, title, answer)
    if refund.get("status") == "FAILED":
        return replace(step, outcome="failed", detail=refund.get("failureReason"))
    return replace(step, detail=refund.get("reason"))


def _closing(since: datetime, lane: Lane, title: str, end: HistoryEntry | None) -> TimelineStep:
    outcome: StepOutcome = "open" if end is None else "ok"
    return TimelineStep(since, lane, "compensation", title, outcome=outcome, until=end.at if end else None)


def _is_about(entry: HistoryEntry, refund: Document) -> bool:
    return (entry.message or "").split(":")[0] == f"Refund {refund.get('refundId')}"


# --- Provisioning. ---


def _provisioning(history: _OrderHistory, job: Document | None) -> Iterator[TimelineStep]:
    runs = history.runs
    attempts = [attempt for attempt in (job or {}).get("attempts") or () if _time(attempt, "at")]
    for number, began in enumerate(runs):
        following = runs[number + 1] if number + 1 < len(runs) else None
        of_run = [a for a in attempts if a["at"] >= began and (following is None or a["at"] < following)]
        yield from _queued(began, of_run, job)
        yield from _attempts(of_run)
    if runs and history.status == "PROVISIONING":
        yield _current(job, runs[-1])


def _queued(began: datetime, attempts: Sequence[Document], job: Document | None) -> Iterator[TimelineStep]:
    """Yield the wait for the package's lock, which ends with the run's first other attempt."""
    first = next((attempt for attempt in attempts if attempt.get("step") != "lock"), None)
    if first is not None:
        yield TimelineStep(
            began, "provisioning", "wait", f"Queued for package {(job or {}).get('package')}", until=first["at"]
        )


def _attempts(attempts: Sequence[Document]) -> Iterator[TimelineStep]:
    for attempt in attempts:
        outcome: StepOutcome = attempt["outcome"] if attempt.get("outcome") in ("ok", "failed") else "unknown"
        title = STEPS.get(str(attempt.get("step")), str(attempt.get("step")))
        yield TimelineStep(attempt["at"], "provisioning", "attempt", title, attempt.get("detail"), outcome)
    for failed, following in pairwise(attempts):
        if failed.get("outcome") == "failed" and failed.get("step") != "lock" and following["at"] > failed["at"]:
            yield TimelineStep(
                failed["at"], "provisioning", "retry", "Pause before the next attempt", until=following["at"]
            )


def _current(job: Document | None, asked_at: datetime) -> TimelineStep:
    """Return the current step of provisioning, for which the order waits."""
    if job is None:
        return TimelineStep(asked_at, "provisioning", "work", "Server", "No record of the order yet", "open")
    since = max(_time(job, "updatedAt") or asked_at, asked_at)
    due = _time(job, "dueAt")
    match job.get("state"):
        case "QUEUED":
            since = max(_time(job, "waitingSince") or since, asked_at)
            return TimelineStep(
                since, "provisioning", "wait", f"Queued for package {job.get('package')}", outcome="open"
            )
        case "WAITING":
            return TimelineStep(since, "provisioning", "retry", "Next attempt", _purchase(job), "open", due=due)
        case "RUNNING":
            title = STEPS.get(str(job.get("step")), "Server")
            return TimelineStep(since, "provisioning", "work", title, _purchase(job), "open")
    return TimelineStep(since, "provisioning", "work", "Answer", _recorded_status(str(job.get("state"))), "open")


def _purchase(job: Document) -> str | None:
    """Describe a purchase that has not been answered."""
    purchase = job.get("purchase")
    if not purchase or purchase.get("answered", True):
        return None
    return f"Requested {', '.join(purchase.get('asked', ()))}, no answer yet: the provider may still complete it"


# --- Dead letters. ---


def _letters(letters: Iterable[Document]) -> Iterator[TimelineStep]:
    for letter in letters:
        lane = LANE_OF_QUEUE.get(str(letter.get("queue")), "order")
        last = _time(letter, "lastFailedAt") or _time(letter, "receivedAt")
        if last is not None:
            yield from _letter(letter, lane, last)


def _letter(letter: Document, lane: Lane, last: datetime) -> Iterator[TimelineStep]:
    letter_id, routing_key = str(letter.get("_id")), str(letter.get("routingKey") or "message")
    replays = letter.get("replays") or ()
    # A failed replay moves the last failure: the message first died before its first replay.
    died = min([last, *(r["at"] for r in replays if _time(r, "at"))])
    first = _time(letter, "firstFailedAt")
    if first is not None and first < died:
        times = f"{letter.get('attempts')} attempts"
        yield TimelineStep(first, lane, "retry", f"{routing_key} failing", times, "failed", died, letter=letter_id)
    outcome: StepOutcome = "open" if letter.get("status") in OPEN else "failed"
    yield TimelineStep(
        died, lane, "dead letter", f"{routing_key} dead-lettered", _error(letter), outcome, letter=letter_id
    )
    for replay in replays:
        if _time(replay, "at"):
            yield _replay(replay, lane, routing_key, letter_id)
    if (at := _time(letter.get("discarded"), "at")) is not None:
        why = f"by {letter['discarded'].get('by')}: {letter['discarded'].get('why')}"
        yield TimelineStep(at, lane, "replay", f"{routing_key} discarded", why, letter=letter_id)


def _replay(replay: Document, lane: Lane, routing_key: str, letter_id: str) -> TimelineStep:
    outcomes: Mapping[str, StepOutcome] = {"handled": "ok", "dead": "failed", "pending": "open"}
    outcome = outcomes.get(str(replay.get("outcome")), "unknown")
    edited = "edited and replayed" if replay.get("edited") else "replayed"
    why = f"by {replay.get('by')}" + (f": {replay['why']}" if replay.get("why") else "")
    until = _time(replay, "outcomeAt")
    return TimelineStep(replay["at"], lane, "replay", f"{routing_key} {edited}", why, outcome, until, letter=letter_id)


def _error(letter: Document) -> str:
    error = letter.get("error") or {}
    return f"{error.get('type') or 'unknown error'}: {error.get('message') or ''}".strip()


def _time(record: Mapping[str, Any] | None, name: str) -> datetime | None:
    value = (record or {}).get(name)
    return value if isinstance(value, datetime) else None
