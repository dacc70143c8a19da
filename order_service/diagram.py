"""Draw the saga: walk every state that saga.py can reach, and write it as an SVG picture, as Mermaid and as a table.

`python -m order_service.diagram docs/saga.md docs/images/saga.svg` rewrites the part of the page between its markers,
and the picture. A test compares both with the code.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from order_service.diagram_svg import svg
from order_service.events import (
    CancelRequested,
    DeadlinePassed,
    DeliveryNoted,
    Event,
    RefundPartRequested,
    RefundRequested,
    RetryRequested,
)
from order_service.order import Order, Refund, RefundLine, Status, replace
from order_service.rules import Transition
from order_service.saga import SAGA
from shared import contracts as c
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.contracts.provisioning import Server

BEGIN, END = "<!-- drawn from order_service/saga.py by `make docs` -->", "<!-- end of the drawing -->"

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_ID = "order"
_EVENTS: tuple[Event, ...] = (
    c.StockReserved(order_id=_ID),
    c.StockReserved(order_id=_ID, fulfilment="vps", provisioning=ServerSpecification(package="p")),
    c.StockReservationFailed(order_id=_ID, reason="r"),
    c.StockReleased(order_id=_ID),
    c.StockShipped(order_id=_ID),
    c.PaymentProcessed(order_id=_ID, transaction_id="t"),
    c.PaymentProcessed(order_id=_ID, transaction_id="t", status="AUTHORIZED"),
    c.PaymentCaptured(order_id=_ID),
    c.PaymentCaptureFailed(order_id=_ID, reason="r"),
    c.PaymentFailed(order_id=_ID, reason="r"),
    c.PaymentRefunded(order_id=_ID, status="REFUNDED"),
    c.PaymentRefunded(order_id=_ID, status="VOIDED"),
    c.ProvisioningProgress(order_id=_ID, step="buy", message="m"),
    c.ProvisioningProgress(order_id=_ID, step="buy", message="m", sequence=1),
    c.ProvisioningCompleted(order_id=_ID, server=Server(ip="10.0.0.1")),
    c.ProvisioningFailed(order_id=_ID, reason="r"),
    c.ProvisioningFailed(order_id=_ID, reason="r", run=1),
    CancelRequested("r"),
    DeliveryNoted(),
    RetryRequested(),
    RefundRequested(),
    DeadlinePassed(),
    RefundPartRequested(
        Refund(refund_id="r", amount=1, created_at=_NOW, updated_at=_NOW, lines=(RefundLine("p", 1),), restock=True)
    ),
    c.PartRefunded(order_id=_ID, refund_id="r"),
    c.PartRefundFailed(order_id=_ID, refund_id="r", reason="r"),
    c.StockReturned(order_id=_ID, refund_id="r"),
)

Edge = tuple[Status, str, Status]


def transitions() -> Iterator[tuple[Order, Event, Transition]]:
    """Yield every state that an order can reach, with every event that can happen there and its transition."""
    first = _new_order()
    seen, waiting = {first}, [first]
    while waiting:
        order = waiting.pop()
        for event in _possible(order):
            transition = SAGA.advance(order, event, _NOW)
            yield order, event, transition
            state = _without_count(transition.order)
            if state not in seen:
                seen.add(state)
                waiting.append(state)


def walk() -> dict[Edge, set[str]]:
    """Return every (status, event, status) that can happen, with the routing keys of the messages sent."""
    edges: dict[Edge, set[str]] = {}
    for order, event, transition in transitions():
        sent = edges.setdefault((order.status, type(event).__name__, transition.order.status), set())
        sent.update(message.routing_key for message in transition.messages)
    return edges


def _without_count(order: Order) -> Order:
    """Count every later run as the second: the saga treats them alike, and the walk comes to an end."""
    return replace(order, provisioning_run=min(order.provisioning_run, 2))


def _possible(order: Order) -> list[Event]:
    """List the events that can arrive: anything from the bus, and the requests that the API lets through."""
    asked_for = (CancelRequested, DeliveryNoted, RetryRequested, RefundRequested, RefundPartRequested)
    return [event for event in _EVENTS if not isinstance(event, asked_for) or SAGA.accepts(order, event)]


def mermaid(edges: dict[Edge, set[str]]) -> str:
    """Draw the statuses and the events that lead from one to another."""
    arrows: dict[tuple[Status, Status], list[str]] = {}
    for before, event, after in edges:
        if before is not after:
            arrows.setdefault((before, after), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> PENDING: POST /orders"]
    lines += [
        f"    {before} --> {after}: {', '.join(sorted(events))}" for (before, after), events in sorted(arrows.items())
    ]
    lines += [
        f"    {status} --> [*]" for status in (Status.CONFIRMED, Status.COMPLETED, Status.CANCELLED, Status.FAILED)
    ]
    return "\n".join([*lines, "```"])


def table(edges: dict[Edge, set[str]]) -> str:
    """List what each event does in each status: where it leads, and what may be sent."""
    lines = ["| in status | on | leads to | may send |", "|---|---|---|---|"]
    for before, row in SAGA.table.items():
        for kind in row:
            event = kind.__name__
            after = sorted({to for frm, name, to in edges if (frm, name) == (before, event)})
            sent = sorted(
                {key for (frm, name, _), keys in edges.items() if (frm, name) == (before, event) for key in keys}
            )
            lines.append(f"| {before} | `{event}` | {', '.join(after)} | {', '.join(f'`{key}`' for key in sent)} |")
    return "\n".join(lines)


def picture() -> str:
    """Draw every transition that the table has a rule for; all other events are ignored."""
    return svg(edge for edge in walk() if edge[1] in {kind.__name__ for kind in SAGA.table[edge[0]]})


def drawn() -> str:
    """Return the part of the page between its markers."""
    edges = walk()
    summary = "<summary>The statuses as a Mermaid diagram</summary>"
    folded = f'<details markdown="1">\n{summary}\n\n{mermaid(edges)}\n\n</details>'
    return f"{BEGIN}\n![The saga](images/saga.svg)\n\n{folded}\n\n{table(edges)}\n{END}"


def redraw(page: str) -> str:
    """Return the page with the part between its markers drawn again."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + drawn() + after


def _new_order() -> Order:
    return Order(
        order_id=_ID,
        user_id="u",
        items=(Item(product_id="p", quantity=1, price=1),),
        total_amount=1,
        currency="USD",
        payment=PaymentInstruction(),
        delivery=DeliveryInstruction(),
        created_at=_NOW,
        updated_at=_NOW,
        deadline=_NOW + timedelta(minutes=5),
    )


if __name__ == "__main__":
    page, image = map(Path, sys.argv[1:])
    page.write_text(redraw(page.read_text()))
    image.write_text(picture())
