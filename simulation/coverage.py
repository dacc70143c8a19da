"""What there is to meet in the code, and what runs have met of it.

- **failpoints**: reached, and apart from that, killed at
- **rows** of the saga's table: status and event
- **answers** of the participants' handlers: the type of a message, and what was answered to it
- **decisions** about a provisioning job: the functions of its lifecycle that return what becomes of it
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from types import ModuleType
from typing import Any

from order_service.saga import SAGA, Saga
from provisioning_service import job, jobs, lifecycle
from shared.contracts import (
    CancelProvisioning,
    CapturePayment,
    Message,
    OrderCreated,
    PartRefunded,
    PartRefundFailed,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisionServer,
    RefundPart,
    RefundPayment,
    ReleaseStock,
    ReturnStock,
    ShipStock,
    StockReleased,
    StockReservationFailed,
    StockReserved,
    StockReturned,
    StockShipped,
)
from simulation import plan
from simulation.entropy import replace_until_exit

Pair = tuple[str, str]

FAILPOINTS = frozenset(point for points in plan.FAILPOINTS.values() for point in points)

NEVER_UNDONE_EARLY = (
    "nothing is undone before the order is CANCELLED or FAILED, and no order is PENDING again after that"
)
UNREACHABLE_ROWS: Mapping[Pair, str] = {
    ("PENDING", StockReleased.__name__): NEVER_UNDONE_EARLY,
    ("PENDING", PaymentRefunded.__name__): NEVER_UNDONE_EARLY,
}
"""Rows for what only a mistake outside of this system brings about, such as an order whose id was used before."""
ROWS = frozenset((str(status), event.__name__) for status, cells in SAGA.table.items() for event in cells) - frozenset(
    UNREACHABLE_ROWS
)

NO_ANSWER = "no answer"
KILLED_AT = "failpoints that a process was killed at"
_ANSWERS: Mapping[tuple[str, type[Message]], tuple[type[Message] | None, ...]] = {
    ("inventory", OrderCreated): (StockReserved, StockReservationFailed, StockReleased),
    ("inventory", ReleaseStock): (StockReleased,),
    ("inventory", ShipStock): (StockShipped,),
    ("inventory", ReturnStock): (StockReturned,),
    ("payment", OrderCreated): (PaymentProcessed, PaymentFailed, PaymentRefunded, None),
    ("payment", CapturePayment): (PaymentCaptured, PaymentCaptureFailed, PaymentRefunded, None),
    ("payment", RefundPayment): (PaymentRefunded, None),
    ("payment", RefundPart): (PartRefunded, PartRefundFailed, None),
    ("provisioning", ProvisionServer): (ProvisioningCompleted, ProvisioningFailed, None),
    ("provisioning", CancelProvisioning): (ProvisioningCompleted, ProvisioningFailed, None),
}
"""What each handler of a participant may answer, None for an answer that comes later by itself."""
ANSWERS = frozenset(
    (f"{service}, {asked.routing_key}", NO_ANSWER if answer is None else answer.routing_key)
    for (service, asked), answers in _ANSWERS.items()
    for answer in answers
)


def _is_decision(function: Any) -> bool:
    return (
        inspect.isfunction(function)
        and function.__module__ == lifecycle.__name__
        and not function.__name__.startswith("_")
        and inspect.signature(function).return_annotation is job.Job
    )


UNREACHABLE_DECISIONS: Mapping[str, str] = {
    lifecycle.refused.__name__: "there is a provider",
    lifecycle.not_available.__name__: "the provider has more addresses than there are orders, and no package is closed",
    lifecycle.duplicate_address.__name__: "the provider sells no address twice",
}
"""Decisions for what does not happen in a world."""
DECISIONS = frozenset(name for name, function in vars(lifecycle).items() if _is_decision(function)) - frozenset(
    UNREACHABLE_DECISIONS
)


@dataclass
class Met:
    """What was met in one world, or in many."""

    failpoints: set[str] = field(default_factory=set)
    """The failpoints that a process has reached."""
    crashed_at: set[str] = field(default_factory=set)
    """Those at which a process was killed."""
    rows: set[Pair] = field(default_factory=set)
    answers: set[Pair] = field(default_factory=set)
    decisions: set[str] = field(default_factory=set)
    errors: set[Pair] = field(default_factory=set)
    """The types of messages, each with an error that its handler has raised."""

    def add(self, other: "Met") -> None:
        """Add what was met elsewhere."""
        for each in fields(self):
            getattr(self, each.name).update(getattr(other, each.name))

    def missing(self) -> dict[str, list[str]]:
        """Return what was never met, in words, by its kind; a kind of which all was met has an empty list."""
        return {
            "failpoints": sorted(FAILPOINTS - self.failpoints),
            KILLED_AT: sorted(FAILPOINTS - self.crashed_at),
            "rows": [f"{event} in {status}" for status, event in sorted(ROWS - self.rows)],
            "answers": [f"{answer} to {asked}" for asked, answer in sorted(ANSWERS - self.answers)],
            "decisions": sorted(DECISIONS - self.decisions),
        }

    def note_answers(self, service: str, messages: Sequence[Message], answers: Sequence[Message]) -> None:
        """Note what a handler of a participant has answered to each of its messages."""
        for message in messages:
            asked = f"{service}, {message.routing_key}"
            own = [each.routing_key for each in answers if each.correlation_id == message.correlation_id]
            self.answers.update((asked, answer) for answer in own or (NO_ANSWER,))


@contextmanager
def observed(met: Met) -> Iterator[None]:
    """Note until the context ends which rows of the saga's table and which decisions about jobs are met."""
    advance = Saga.advance

    def observing(saga: Saga, order: Any, event: Any, now: Any) -> Any:
        if type(event) in saga.table[order.status]:
            met.rows.add((order.status, type(event).__name__))
        return advance(saga, order, event, now)

    with ExitStack() as replaced:
        replace_until_exit(replaced, Saga, "advance", observing)
        for module in (lifecycle, jobs):
            for name in DECISIONS & vars(module).keys():
                replace_until_exit(replaced, module, name, _noting(met.decisions, name, module))
        yield


def _noting(decisions: set[str], name: str, module: ModuleType) -> Callable[..., Any]:
    decide = getattr(module, name)

    @wraps(decide)
    def deciding(*arguments: Any, **options: Any) -> Any:
        decisions.add(name)
        return decide(*arguments, **options)

    return deciding
