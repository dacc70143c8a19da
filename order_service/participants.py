"""The participants of the saga: one row for each service that does something for an order and can undo it.

Everything that loops over participants (the saga, the stored order, the API, the metrics) reads `PARTICIPANTS`.
Adding one takes a row here and a field of `Order` for its state; CONTRIBUTING.md lists the other files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic.alias_generators import to_camel

from order_service.order import Order, replace
from shared.contracts import (
    CapturePayment,
    Message,
    OrderMessage,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    RefundPayment,
    ReleaseStock,
    ShipStock,
    StockReleased,
    StockReservationFailed,
    StockReserved,
    StockShipped,
)

PENDING = "PENDING"
"""The state of a participant that has not answered yet."""
FAILED = "FAILED"
"""The state of a participant that has refused: it holds nothing and never will."""


class Refusal(Protocol):
    """An answer that says why the participant does nothing for the order."""

    routing_key: ClassVar[str]

    @property
    def reason(self) -> str:
        """Return the reason, for the client and the order's history."""


Done = TypeVar("Done", bound=OrderMessage)
Refused = TypeVar("Refused", bound=Refusal)
Undone = TypeVar("Undone", bound=OrderMessage)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How operators' pages call the work of a participant while it lasts, and its results."""

    doing: str
    done: str
    refused: str
    undoing: str
    undone: str


@dataclass(frozen=True, kw_only=True)
class DeliveryPart:
    """What a participant does when the goods are delivered: the command for it, its answer, and its state after it."""

    command: Callable[[Order], Message]
    answer: type[OrderMessage]
    state: str


@dataclass(frozen=True, kw_only=True)
class FulfilmentPart:
    """What a participant that has only committed itself does once the order is fulfilled, and its two answers."""

    commits: Callable[[Any], bool]
    """Return whether the participant only commits itself with this `done`."""
    committed: str
    """Its state after such a `done`."""
    open: str
    """What people are told until it is done."""
    doing: str
    finished: str
    failed: str
    """How operators' pages call it while it lasts, and its results."""
    command: Callable[[Order], Message]
    command_type: type[Message]
    """The type of that command."""
    answer: type[OrderMessage]
    refused: type[OrderMessage]


@dataclass(frozen=True, kw_only=True)
class Participant(Generic[Done, Refused, Undone]):
    """A service that takes part in the saga: its answers, the states of its part, and the command that undoes it."""

    name: str
    """Its name in the reason of a timeout, in the labels of metrics, and for operators."""
    field: str
    """The field of `Order` that holds its state."""

    done: type[Done]
    succeeded: str
    """Its state after `done`: the order can be fulfilled once all participants are in theirs, or committed."""
    on_fulfilment: FulfilmentPart | None = None
    """Its part in the fulfilment; None if it never only commits itself."""
    on_delivery: DeliveryPart | None = None
    """Its part in the delivery of goods; None if it has none."""
    brings: Callable[[Done], Mapping[str, object]] = lambda _: {}
    """The fields of the order that `done` sets besides the state."""

    refused: type[Refused]

    undo: Callable[[Order], Message]
    """Make the command that undoes its part; `undone` answers it."""
    undo_type: type[Message]
    """The type of that command."""
    undone: type[Undone]
    undone_state: Callable[[Undone], str]
    """Return its state after `undone`."""
    undone_early: str
    """The reason of the cancellation if it is undone before all participants have succeeded."""

    holds_nothing: frozenset[str]
    """The states in which nothing is held for the order: FAILED, and all that `undone_state` returns."""
    provisional: frozenset[str] = frozenset()
    """Those of `holds_nothing` that a later `undone` may replace; all others are final."""

    wording: Wording

    @cached_property
    def stored_field(self) -> str:
        """The name of its state in stored orders and in the API."""
        return to_camel(self.field)

    @property
    def answer_keys(self) -> tuple[str, str, str]:
        """The routing keys of its answers."""
        return self.done.routing_key, self.refused.routing_key, self.undone.routing_key

    def state(self, order: Order) -> str:
        """Return its state in the order."""
        state: str = getattr(order, self.field)
        return state

    def with_state(self, order: Order, state: str) -> Order:
        """Return the order with this state of the participant."""
        change: dict[str, Any] = {self.field: state}
        return replace(order, **change)

    @property
    def done_states(self) -> tuple[str, ...]:
        """Its states in which its part is done, or committed, and not undone."""
        return (self.on_fulfilment.committed, self.succeeded) if self.on_fulfilment else (self.succeeded,)

    def done_state(self, answer: Done) -> str:
        """Return its state after `done`."""
        part = self.on_fulfilment
        return part.committed if part and part.commits(answer) else self.succeeded

    def with_success(self, order: Order, answer: Done) -> Order:
        """Return the order with the participant's success and all that it brings."""
        changes: dict[str, Any] = {self.field: self.done_state(answer), **self.brings(answer)}
        return replace(order, **changes)

    def has_succeeded(self, order: Order) -> bool:
        """Return whether its part is done, or committed, and not undone."""
        return self.state(order) in self.done_states

    def is_committed(self, order: Order) -> bool:
        """Return whether it has committed itself, and the rest is to be done once the order is fulfilled."""
        return self.on_fulfilment is not None and self.state(order) == self.on_fulfilment.committed

    def state_after_delivery(self) -> str:
        """Return its state once the goods are delivered."""
        return self.on_delivery.state if self.on_delivery else self.succeeded

    def is_delivered(self, order: Order) -> bool:
        """Return whether its part in the delivery is done."""
        return self.state(order) == self.state_after_delivery()

    def is_released(self, order: Order) -> bool:
        """Return whether it is known to hold nothing for the order."""
        return self.state(order) in self.holds_nothing

    def is_final(self, order: Order) -> bool:
        """Return whether it holds nothing and no further answer changes that."""
        return self.is_released(order) and self.state(order) not in self.provisional


AnyParticipant = Participant[Any, Any, Any]


STOCK = Participant(
    name="stock",
    field="stock_status",
    done=StockReserved,
    succeeded="RESERVED",
    on_delivery=DeliveryPart(
        command=lambda order: ShipStock(order_id=order.order_id), answer=StockShipped, state="SHIPPED"
    ),
    brings=lambda answer: {
        "fulfilment": answer.fulfilment,
        "provisioning_spec": answer.provisioning,
        "slot": answer.slot,
        "slot_visible_at": answer.slot_visible_at,
    },
    refused=StockReservationFailed,
    undo=lambda order: ReleaseStock(order_id=order.order_id, items=order.items),
    undo_type=ReleaseStock,
    undone=StockReleased,
    undone_state=lambda _: "RELEASED",
    undone_early="The stock was released before the order was confirmed",
    holds_nothing=frozenset({FAILED, "RELEASED"}),
    wording=Wording(doing="Reserving", done="Reserved", refused="Refused", undoing="Releasing", undone="Released"),
)

PAYMENT = Participant(
    name="payment",
    field="payment_status",
    done=PaymentProcessed,
    succeeded="PROCESSED",
    on_fulfilment=FulfilmentPart(
        commits=lambda answer: answer.status == "AUTHORIZED",
        committed="AUTHORIZED",
        open="its payment is authorised, and not captured yet",
        doing="Capturing",
        finished="Captured",
        failed="Capture refused",
        command=lambda order: CapturePayment(order_id=order.order_id),
        command_type=CapturePayment,
        answer=PaymentCaptured,
        refused=PaymentCaptureFailed,
    ),
    brings=lambda answer: {"transaction_id": answer.transaction_id},
    refused=PaymentFailed,
    undo=lambda order: RefundPayment(order_id=order.order_id, reason=order.failure_reason or ""),
    undo_type=RefundPayment,
    undone=PaymentRefunded,
    undone_state=lambda answer: answer.status,
    undone_early="The payment was returned before the order was confirmed",
    holds_nothing=frozenset({FAILED, "VOIDED", "REFUNDED"}),
    provisional=frozenset({"VOIDED"}),
    wording=Wording(doing="Charging", done="Charged", refused="Declined", undoing="Refunding", undone="Refunded"),
)

PARTICIPANTS: tuple[AnyParticipant, ...] = (STOCK, PAYMENT)


def open_part(order: Order) -> str | None:
    """Return what is still open in the fulfilment of an order, for people; None if nothing is."""
    for participant in PARTICIPANTS:
        if participant.on_fulfilment and participant.is_committed(order):
            return participant.on_fulfilment.open
    return None
