"""The saga: what an order does with each event, in each status. Pure: no I/O, no clock, no settings.

    PENDING ──all participants have succeeded──▶ CONFIRMED (goods)  or  PROVISIONING (servers)
       │                                                                 │
       ├── refused, cancelled, timed out ──▶ CANCELLED ◀── cancelled ────┤
       │                                     compensates                 └── failed ──▶ FAILED, money held:
       │                                                                                 retry, refund, or hold expires

CONFIRMED goods that are delivered, and servers that are ready, are COMPLETED.

A participant may only have committed itself, as a card that is authorised has. Its part is asked for when the order is
fulfilled: CONFIRMED goods, COMPLETED servers. The order is announced once that is done. If the participant refuses, the
order is FAILED; a retry asks for it again.

`Saga.table` is the whole of it: a row for every status, a cell for every event that has an effect there; all other
events are ignored. The participants are the rows of participants.py: three answers each, and the command that undoes.

An order that enters a status sends `state_messages`. If the event that led into the status comes again, they are sent
again: a crash between write and publish loses nothing. `pending_commands` are those of them that an unsettled order
still needs answers to; they are sent again from time to time, as messages can be lost.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from order_service import refunds
from order_service.events import (
    CancelRequested,
    DeadlinePassed,
    DeliveryNoted,
    Event,
    RefundPartRequested,
    RefundRequested,
    RetryRequested,
)
from order_service.failures import code_of
from order_service.order import FINAL, HistoryEntry, Order, Status, replace
from order_service.participants import (
    FAILED,
    PARTICIPANTS,
    PENDING,
    AnyParticipant,
    Done,
    Participant,
    Refusal,
    Refused,
    Undone,
    open_part,
)
from order_service.rules import Cell, Table, Transition, answers, on, row
from order_service.snapshot import snapshot
from shared.contracts import (
    CancelProvisioning,
    Message,
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderCreated,
    OrderFailed,
    OrderMessage,
    OrderProvisioning,
    OrderRefunded,
    PartRefunded,
    PartRefundFailed,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    ProvisionServer,
    StockReturned,
)
from shared.contracts.failures import FailureCode

SAGA_VERSION = 1
"""The version of the saga that new orders begin under, stored with each.

Raise it when a process of the release before would decide wrongly about an order of this one: for a new status or
participant, or when an event comes to mean something else in a status. A new optional field, or a message that can
also stay unanswered for a while, needs no new version. A process leaves the orders of newer versions to newer processes
(`orders.from_document`); it must know those of all versions from OLDEST_SAGA_VERSION on.
"""
OLDEST_SAGA_VERSION = 1
"""The oldest version whose orders this release carries on. Raise it when rules for older ones are removed."""

MAX_RUNS = 20
"""Most runs of the provisioning of one order: each adds to its history and to its job."""


class Saga:
    """The way of an order with the given participants."""

    def __init__(self, participants: Iterable[AnyParticipant]) -> None:
        self.participants = tuple(participants)
        compensating = row(
            *answers(self.participants, done=_undo_late, refused=_note_refusal, undone=_note_undone),
            on(CancelRequested, self._compensate_again),
            on(RefundRequested, self._compensate_again),
        )
        refunding = row(
            on(RefundPartRequested, refunds.request),
            on(PartRefunded, refunds.record_refunded),
            on(PartRefundFailed, refunds.record_failed),
            on(StockReturned, refunds.record_returned),
        )
        fulfilled = row(*self._answers_to_fulfilment())
        self.table: Table = {
            Status.PENDING: row(
                *answers(self.participants, done=self._join, refused=_cancel_refused, undone=_cancel_undone),
                on(CancelRequested, _cancel_requested),
                on(DeadlinePassed, self._time_out),
            ),
            Status.CONFIRMED: {**fulfilled, **refunding, **row(on(DeliveryNoted, self._deliver))},
            Status.PROVISIONING: row(
                on(ProvisioningProgress, _record_progress),
                on(ProvisioningCompleted, self._complete),
                on(ProvisioningFailed, _fail_or_cancel),
                on(CancelRequested, _stop_provisioning),
            ),
            Status.COMPLETED: {**fulfilled, **refunding, **row(*self._answers_to_delivery())},
            Status.CANCELLED: compensating,
            Status.FAILED: row(
                *answers(self.participants, undone=_note_undone),
                *self._late_fulfilment(),
                on(ProvisioningCompleted, self._complete_late),
                on(RetryRequested, self._retry),
                on(CancelRequested, self._compensate_again),
                on(RefundRequested, self._refund),
                on(DeadlinePassed, self._give_up),
            ),
        }

    @property
    def answer_types(self) -> list[type[Message]]:
        """The messages that have an effect on orders."""
        events = dict.fromkeys(event for cells in self.table.values() for event in cells)
        return [event for event in events if issubclass(event, Message)]

    def advance(self, order: Order, event: Event, now: datetime) -> Transition:
        """Make the transition of the order; an event that changes nothing may only repeat messages."""
        if _is_outdated(order, event):
            return Transition(order)
        rule = self.table[order.status].get(type(event))
        transition = rule(order, event, now) if rule else None
        if transition is None or transition.order == order:
            return Transition(order, self._repeated(order, event, transition))
        after = replace(transition.order, settled=self._is_settled(transition.order), updated_at=now)
        messages = transition.messages
        if enters(order, after):
            after = replace(after, cause=event.routing_key, entered_at=now)
            messages = self.state_messages(after)
        entry = HistoryEntry(now, event.routing_key, after.status, _in_words(event))
        return Transition(after, _with_order(messages, after), entry)

    def accepts(self, order: Order, event: Event) -> bool:
        """Return whether the event has a meaning for the order: whether a client or an operator may ask for it."""
        rule = self.table[order.status].get(type(event))
        return rule is not None and rule(order, event, order.updated_at) is not None

    def state_messages(self, order: Order) -> tuple[Message, ...]:
        """Return the messages that an order sends on entering its state: the news, then its commands."""
        return (*news(order), *self.pending_commands(order))

    def awaits_answer(self, order: Order) -> bool:
        """Return whether the order has pending commands; it can be asked even if they cannot be put into messages.

        A FAILED order whose money is held waits for a decision instead, and a settled order for nothing.
        """
        return not order.settled and (order.status is not Status.FAILED or order.compensating)

    def pending_commands(self, order: Order) -> tuple[Message, ...]:
        """Return the commands that an unsettled order needs answers to; see `awaits_answer`.

        They are sent again until they are answered, even if every message was lost: the record is the truth.
        """
        match order.status:
            case Status.PENDING:
                return (created(order),)
            case Status.CONFIRMED | Status.COMPLETED:
                return (*self._fulfilment(order), *self._delivery(order), *refunds.commands(order))
            case Status.PROVISIONING:
                return (_provision(order), *((_stop(order),) if order.cancel_requested else ()))
            case Status.CANCELLED:
                return self._compensation(order)
            case Status.FAILED if order.compensating:
                return self._compensation(order)
            case _:
                return ()

    # --- Rules that depend on all participants together. ---

    def _join(
        self, participant: Participant[Done, Refused, Undone], order: Order, answer: Done, now: datetime
    ) -> Transition:
        """Record the success; the last of the participants carries the order on, whichever it is."""
        order = participant.with_success(order, answer)
        if not self._all_succeeded(order):
            return Transition(order)
        if order.fulfilment == "vps":
            return _start_run(replace(order, confirmed_at=now))
        return Transition(replace(order, status=Status.CONFIRMED, confirmed_at=now))

    def _time_out(self, order: Order, event: DeadlinePassed, now: datetime) -> Transition:
        silent = [participant.name for participant in self.participants if participant.state(order) == PENDING]
        return _cancel(order, f"Timed out waiting for {' and '.join(silent)}", code_of(event), now)

    def _complete(self, order: Order, event: ProvisioningCompleted, now: datetime) -> Transition | None:
        """Complete the order, whichever run the server is from, as long as it is paid for."""
        if not self._holds_all(order):
            return None
        ready = replace(order, status=Status.COMPLETED, server=event.server, completed_at=now)
        return Transition(_without_failure(replace(ready, provisioning_status="COMPLETED")))

    def _complete_late(self, order: Order, event: ProvisioningCompleted, now: datetime) -> Transition | None:
        """Complete an order after its provisioning failed; one that failed as it was fulfilled has its server."""
        return None if _is_fulfilled(order) else self._complete(order, event, now)

    def _deliver(self, order: Order, _event: DeliveryNoted, now: datetime) -> Transition | None:
        """Complete the order, unless a participant's part in the fulfilment is open: nothing leaves unpaid."""
        if any(self._fulfilment(order)):
            return None
        return Transition(replace(order, status=Status.COMPLETED, completed_at=now))

    def _retry(self, order: Order, _event: RetryRequested, now: datetime) -> Transition | None:
        if not self._holds_all(order):
            return None
        if _is_fulfilled(order):
            return Transition(_fulfilled(order, now))
        return _start_run(order) if order.provisioning_run < MAX_RUNS else None

    def _refund(self, order: Order, event: RefundRequested, now: datetime) -> Transition | None:
        return self._compensate_again(order, event, now) if order.compensating else self._give_up(order, event, now)

    def _give_up(self, order: Order, _event: RefundRequested | DeadlinePassed, _now: datetime) -> Transition | None:
        if order.compensating:
            return None
        return Transition(replace(order, compensating=True), self._compensation(order))

    def _compensate_again(
        self, order: Order, _event: CancelRequested | RefundRequested, _now: datetime
    ) -> Transition | None:
        """Repeat the commands of a compensation that have not been answered."""
        commands = self.pending_commands(order)
        return Transition(order, commands) if commands else None

    # --- Questions about all participants together. ---

    def _all_succeeded(self, order: Order) -> bool:
        return all(participant.has_succeeded(order) for participant in self.participants)

    def _holds_all(self, order: Order) -> bool:
        """Return whether everything that the order needs is held, and not on its way back."""
        return self._all_succeeded(order) and not order.compensating

    def _is_settled(self, order: Order) -> bool:
        """Return whether nothing more can happen without a request or a late answer."""
        match order.status:
            case Status.CONFIRMED | Status.COMPLETED:
                return not self.pending_commands(order)
            case Status.CANCELLED:
                return self._all_released(order)
            case Status.FAILED:
                return order.compensating and self._all_released(order)
            case _:
                return False

    def _fulfilment(self, order: Order) -> Iterator[Message]:
        """Yield the commands to the participants of a fulfilled order that have only committed themselves."""
        for participant in self.participants:
            if participant.on_fulfilment and participant.is_committed(order):
                yield participant.on_fulfilment.command(order)

    def _answers_to_fulfilment(self) -> Iterator[Cell]:
        for participant in self.participants:
            if part := participant.on_fulfilment:
                yield part.answer, partial(_note_fulfilment, participant)
                yield part.refused, partial(_fail_fulfilment, participant)

    def _late_fulfilment(self) -> Iterator[Cell]:
        for participant in self.participants:
            if part := participant.on_fulfilment:
                yield part.answer, partial(_fulfil_late, participant)

    def _delivery(self, order: Order) -> Iterator[Message]:
        """Yield the commands to the participants whose part in the delivery is not done; a server has no such part."""
        if order.status is not Status.COMPLETED or order.fulfilment == "vps":
            return
        for participant in self.participants:
            if participant.on_delivery and not participant.is_delivered(order):
                yield participant.on_delivery.command(order)

    def _answers_to_delivery(self) -> Iterator[Cell]:
        for participant in self.participants:
            if participant.on_delivery:
                yield participant.on_delivery.answer, partial(_note_delivery, participant)

    def _all_released(self, order: Order) -> bool:
        return all(participant.is_released(order) for participant in self.participants)

    def _compensation(self, order: Order) -> tuple[Message, ...]:
        """Return the undo commands for all that might still happen, not only for all that did."""
        return tuple(participant.undo(order) for participant in self.participants if not participant.is_released(order))

    def _repeated(self, order: Order, event: Event, transition: Transition | None) -> tuple[Message, ...]:
        """Return the messages of a transition that changes nothing: all of the state's if this event led into it."""
        if isinstance(event, Message) and event.routing_key == order.cause:
            return self.state_messages(order)
        return _with_order(transition.messages, order) if transition else ()


# --- Rules about one participant. ---


def _cancel_refused(
    participant: Participant[Done, Refused, Undone], order: Order, answer: Refused, now: datetime
) -> Transition:
    return _cancel(participant.with_state(order, FAILED), answer.reason, code_of(answer), now)


def _cancel_undone(
    participant: Participant[Done, Refused, Undone], order: Order, answer: Undone, now: datetime
) -> Transition:
    order = participant.with_state(order, participant.undone_state(answer))
    return _cancel(order, participant.undone_early, code_of(answer), now)


def _undo_late(
    participant: Participant[Done, Refused, Undone], order: Order, answer: Done, _now: datetime
) -> Transition:
    """Undo a success that the order no longer needs."""
    undo = (participant.undo(order),)
    if participant.state(order) != PENDING:
        return Transition(order, undo)
    return Transition(participant.with_state(order, participant.done_state(answer)), undo)


def _note_refusal(
    participant: Participant[Done, Refused, Undone], order: Order, _answer: Refused, _now: datetime
) -> Transition:
    return Transition(participant.with_state(order, FAILED))


def _note_undone(
    participant: Participant[Done, Refused, Undone], order: Order, answer: Undone, _now: datetime
) -> Transition:
    if participant.is_final(order):
        return Transition(order)
    return Transition(participant.with_state(order, participant.undone_state(answer)))


def _note_fulfilment(
    participant: AnyParticipant, order: Order, _answer: OrderMessage, _now: datetime
) -> Transition | None:
    if not participant.is_committed(order):
        return None
    return Transition(participant.with_state(order, participant.succeeded))


def _fail_fulfilment(participant: AnyParticipant, order: Order, answer: Refused, _now: datetime) -> Transition | None:
    """Leave the order to an operator: it has all but this participant's part."""
    if not participant.is_committed(order):
        return None
    return Transition(replace(_failed(order, answer), completed_at=None))


def _fulfil_late(participant: AnyParticipant, order: Order, _answer: OrderMessage, now: datetime) -> Transition | None:
    """Fulfil an order that failed as it was fulfilled, unless it is being compensated: a repetition has succeeded."""
    if order.compensating or not participant.is_committed(order) or not _is_fulfilled(order):
        return None
    return Transition(_fulfilled(participant.with_state(order, participant.succeeded), now))


def _note_delivery(
    participant: AnyParticipant, order: Order, _answer: OrderMessage, _now: datetime
) -> Transition | None:
    if order.fulfilment == "vps":
        return None
    return Transition(participant.with_state(order, participant.state_after_delivery()))


# --- Rules about the order alone. ---


def _cancel_requested(order: Order, event: CancelRequested, now: datetime) -> Transition:
    return _cancel(order, event.reason, code_of(event), now)


def _cancel(order: Order, reason: str, code: str, now: datetime) -> Transition:
    cancelled = replace(order, status=Status.CANCELLED, cancelled_at=now)
    return Transition(replace(cancelled, failure_reason=reason, failure_code=code))


def _is_fulfilled(order: Order) -> bool:
    """Return whether an order that is FAILED has all that it is for: its goods are reserved, its server is ready."""
    return order.fulfilment == "goods" or order.provisioning_status == "COMPLETED"


def _fulfilled(order: Order, now: datetime) -> Order:
    """Return such an order in the status that it failed in."""
    order = _without_failure(order)
    if order.fulfilment == "goods":
        return replace(order, status=Status.CONFIRMED)
    return replace(order, status=Status.COMPLETED, completed_at=now)


def _start_run(order: Order) -> Transition:
    """Request the server: for the first time, or once more."""
    order = replace(_without_failure(order), status=Status.PROVISIONING, provisioning_status="REQUESTED")
    return Transition(replace(order, provisioning_run=order.provisioning_run + 1))


def _record_progress(order: Order, event: ProvisioningProgress, _now: datetime) -> Transition | None:
    """Record new progress: by its number, over all runs; by its step and attempt if the sender does not count."""
    if 0 < event.sequence <= order.progress_sequence:
        return None
    order = replace(order, provisioning_status="IN_PROGRESS", progress=f"{event.step}/{event.attempt}")
    return Transition(replace(order, progress_sequence=event.sequence or order.progress_sequence))


def _stop_provisioning(order: Order, _event: CancelRequested, _now: datetime) -> Transition:
    return Transition(replace(order, cancel_requested=True), (_stop(order),))


def _fail_or_cancel(order: Order, event: ProvisioningFailed, now: datetime) -> Transition:
    """Cancel the order if that was requested, unless a server was bought: then an operator decides on the failure."""
    order = replace(order, provisioning_status="FAILED", cancel_requested=order.cancel_requested and not event.bought)
    if order.cancel_requested:
        return _cancel(order, event.reason, FailureCode.CANCELLED_BY_CLIENT, now)
    return Transition(_failed(order, event))


def _failed(order: Order, event: Refusal) -> Order:
    return replace(order, status=Status.FAILED, failure_reason=event.reason, failure_code=code_of(event))


def _without_failure(order: Order) -> Order:
    return replace(order, failure_reason=None, failure_code=None)


def _is_outdated(order: Order, event: Event) -> bool:
    """Return whether the event is the failure of a run that a later one has followed."""
    return isinstance(event, ProvisioningFailed) and 0 < event.run < order.provisioning_run


# --- Words and messages. ---


def enters(before: Order, after: Order) -> bool:
    """Return whether a transition led into a state: another status, or one that was open and is announced now."""
    return after.status is not before.status or (_is_open(before) and not _is_open(after))


def is_final(order: Order) -> bool:
    """Return whether the order has a final status that is announced: compensations may still be on their way."""
    return order.status in FINAL and not _is_open(order)


def _is_open(order: Order) -> bool:
    """Return whether the order is fulfilled but for a participant that has only committed itself."""
    return order.status in (Status.CONFIRMED, Status.COMPLETED) and open_part(order) is not None


def _in_words(event: Event) -> str | None:
    """Return the text of a history entry: the progress, or the reason of a refusal or a request; which refund it is."""
    text: str | None = getattr(event, "message", None) or getattr(event, "reason", None)
    refund_id: str | None = getattr(event, "refund_id", None)
    if refund_id is None:
        return text
    return f"Refund {refund_id}: {text}" if text else f"Refund {refund_id}"


def _with_order(messages: tuple[Message, ...], order: Order) -> tuple[Message, ...]:
    """Add the order as it is after the transition to the news of a refund, which the rule has made before that."""
    return tuple(
        message.model_copy(update={"order": snapshot(order)}) if isinstance(message, OrderRefunded) else message
        for message in messages
    )


def news(order: Order) -> tuple[Message, ...]:
    """Return the event that announces the order's status, as soon as nothing is open in it."""
    if _is_open(order):
        return ()
    event: dict[str, Any] = {
        "order_id": order.order_id,
        "user_id": order.user_id,
        "owner_id": order.owner_id,
        "total_amount": order.total_amount,
        "at": order.entered_at,
        "order": snapshot(order),
    }
    match order.status:
        case Status.PENDING:
            return ()
        case Status.CONFIRMED:
            return (OrderConfirmed(**event),)
        case Status.PROVISIONING:
            return (OrderProvisioning(**event),)
        case Status.COMPLETED:
            return (OrderCompleted(**event),)
        case Status.CANCELLED:
            return (OrderCancelled(**event, reason=order.failure_reason),)
        case Status.FAILED:
            return (OrderFailed(**event, reason=order.failure_reason),)


def created(order: Order) -> OrderCreated:
    """Return the message that a new order is placed."""
    return OrderCreated(
        owner_id=order.owner_id,
        prices_required=order.prices_required or None,
        hold_id=order.hold_id,
        order_id=order.order_id,
        user_id=order.user_id,
        items=order.items,
        total_amount=order.total_amount,
        currency=order.currency,
        payment=order.payment,
        delivery=order.delivery,
        at=order.created_at,
    )


def _stop(order: Order) -> CancelProvisioning:
    return CancelProvisioning(order_id=order.order_id, run=order.provisioning_run)


def _provision(order: Order) -> ProvisionServer:
    spec = order.provisioning_spec
    if spec is None:
        raise ValueError(f"order {order.order_id} needs a server, but stock.reserved did not specify it")
    return ProvisionServer(
        owner_id=order.owner_id,
        order_id=order.order_id,
        user_id=order.user_id,
        package=spec.package,
        package_id=spec.package_id,
        ram=spec.ram,
        run=order.provisioning_run,
    )


SAGA = Saga(PARTICIPANTS)
"""The way of all orders."""
