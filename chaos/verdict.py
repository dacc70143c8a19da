"""Compares what clients were told with what is stored. Pure: no database, no clock.

Each order, refund, cancellation, delivery, hold and posting that was accepted must be there, once, and as it was asked
for; a repetition under the same key must have got the same answer; and nothing may be there that nobody asked for. What
was never answered may be there, or not.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chaos.records import Request
from chaos.shop import GOODS
from chaos.stored import Stored, StoredOrder

FindingKind = Literal[
    "lost", "doubled", "changed", "unsettled", "not asked for", "refused", "never answered", "not audited"
]
_ENDS = {"cancel": ("CANCELLED",), "deliver": ("COMPLETED",)}
"""How an order ends after a request that was accepted."""
_MAY_BE_REFUSED = ("cancel", "deliver", "refund", "hold")
"""What comes too late for some orders, or finds nothing to hold."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be, in words."""

    kind: FindingKind
    words: str


def compare(requests: Collection[Request], stored: Stored, audited: Collection[str]) -> list[Finding]:
    """Return everything that must not be; `audited` are the ids of the orders that the audit judged."""
    by_kind: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        by_kind[request.kind].append(request)
    orders = {order.id: order for order in stored.orders}
    return [
        *_answers(requests),
        *_orders(by_kind["order"], orders),
        *_ends(by_kind["cancel"], by_kind["deliver"], orders),
        *_refunds(by_kind["refund"], orders),
        *_postings(by_kind["posting"], stored),
        *_holds(by_kind["hold"], stored),
        *_audit(by_kind["order"], orders, audited),
    ]


def _answers(requests: Collection[Request]) -> Iterator[Finding]:
    """Yield requests that got different answers, none at all, or one that refuses what cannot be refused."""
    for request in requests:
        if len(request.ids) > 1:
            yield Finding("changed", f"{request.key} was answered with {' and then '.join(sorted(request.ids))}")
        if request.is_unanswered:
            yield Finding("never answered", f"{request.key}: {len(request.answers)} attempts")
        refusal = request.refusal
        if refusal is not None and (request.kind not in _MAY_BE_REFUSED or refusal.status != 409):
            yield Finding("refused", f"{request.key} was answered with {refusal.status}: {refusal.error}")


def _orders(requests: Sequence[Request], orders: Mapping[str, StoredOrder]) -> Iterator[Finding]:
    by_customer: dict[str, list[StoredOrder]] = defaultdict(list)
    for order in orders.values():
        by_customer[order.customer].append(order)
        if not order.settled:
            yield Finding("unsettled", f"order {order.id} of {order.customer} is {order.status}, and not settled")
    for request in requests:
        found = by_customer.pop(request.subject, [])
        if request.accepted is not None and request.accepted.id not in {order.id for order in found}:
            yield Finding("lost", f"order {request.accepted.id} of {request.subject} was accepted, and is not there")
        if len(found) > 1:
            yield Finding("doubled", f"{request.subject} has {len(found)} orders: {_listed(found)}")
        for order in found:
            yield from _as_asked(request, order)
    for customer, unknown in by_customer.items():
        yield Finding("not asked for", f"nobody placed {_listed(unknown)} of {customer}")
    told = Counter(request.accepted.id for request in requests if request.accepted is not None)
    for order_id, number in told.items():
        if number > 1:
            yield Finding("changed", f"{number} orders were accepted under the id {order_id}")


def _listed(orders: Sequence[StoredOrder]) -> str:
    return ", ".join(order.id for order in orders)


def _as_asked(request: Request, order: StoredOrder) -> Iterator[Finding]:
    (item,) = request.body["items"]
    asked = (item["productId"], item["quantity"], _minor(request.body["totalAmount"]), request.body.get("holdId"))
    found = (order.product, order.quantity, order.total, order.hold)
    if asked != found:
        yield Finding("changed", f"order {order.id} was placed as {asked}, and is {found}")


def _minor(amount: float) -> int:
    return round(100 * amount)


def _ends(
    cancellations: Sequence[Request], deliveries: Sequence[Request], orders: Mapping[str, StoredOrder]
) -> Iterator[Finding]:
    for request in (*cancellations, *deliveries):
        order = orders.get(request.subject)
        if request.accepted is None or order is None or (request.kind == "cancel" and order.has_server):
            continue  # provisioning was asked to stop, and had bought already
        if order.status not in _ENDS[request.kind]:
            yield Finding("lost", f"{request.kind} of order {order.id} was accepted, and it is {order.status}")
    asked = {request.subject for request in deliveries if request.accepted is not None or request.is_doubtful}
    for order in orders.values():
        if order.status == "COMPLETED" and order.product == GOODS and order.id not in asked:
            yield Finding("not asked for", f"order {order.id} is COMPLETED, and nobody delivered it")


def _refunds(requests: Sequence[Request], orders: Mapping[str, StoredOrder]) -> Iterator[Finding]:
    left = {order.id: {refund.id: refund for refund in order.refunds} for order in orders.values()}
    doubtful: Counter[str] = Counter()
    for order in orders.values():
        for refund_id, number in Counter(refund.id for refund in order.refunds).items():
            if number > 1:
                yield Finding("doubled", f"order {order.id} has {number} refunds under the id {refund_id}")
    for request in requests:
        doubtful[request.subject] += request.is_doubtful
        if request.accepted is None or request.subject not in orders:
            continue
        found = left[request.subject].pop(str(request.accepted.id), None)
        if found is None:
            yield Finding("lost", f"{request.key} of order {request.subject} was accepted, and is not there")
        elif found.status != "REFUNDED" or found.amount != _refunded(request, orders[request.subject]):
            yield Finding("changed", f"{request.key} of order {request.subject} is {found.status}, {found.amount}")
    for order_id, refunds in left.items():
        if len(refunds) > doubtful[order_id]:
            yield Finding(
                "not asked for", f"order {order_id} has refunds that nobody was told of: {', '.join(refunds)}"
            )


def _refunded(request: Request, order: StoredOrder) -> int:
    """Return the amount that was asked for, in minor units: as it is, or as the price of units."""
    if "amount" in request.body:
        return _minor(request.body["amount"])
    units: int = sum(line["quantity"] for line in request.body["items"])
    return units * order.total // order.quantity


def _postings(requests: Sequence[Request], stored: Stored) -> Iterator[Finding]:
    made: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for posting in stored.postings:
        made[posting.key].append((posting.retainer, posting.amount))
    for request in requests:
        found = made.pop(request.key, [])
        if request.accepted is not None and not found:
            yield Finding("lost", f"{request.key} was accepted, and is not in the journal")
        if len(found) > 1:
            yield Finding("doubled", f"{request.key} is in the journal {len(found)} times")
        for each in found:
            if each != (request.subject, _minor(request.body["amount"])):
                yield Finding("changed", f"{request.key} was of {request.body['amount']}, and is {each}")
    for key in made:
        yield Finding("not asked for", f"nobody asked for the entry {key}")


def _holds(requests: Sequence[Request], stored: Stored) -> Iterator[Finding]:
    for request in requests:
        if request.accepted is not None and request.accepted.id not in stored.holds:
            yield Finding("lost", f"hold {request.accepted.id} of {request.subject} was accepted, and is not there")


def _audit(
    requests: Sequence[Request], orders: Mapping[str, StoredOrder], audited: Collection[str]
) -> Iterator[Finding]:
    accepted = {str(request.accepted.id) for request in requests if request.accepted is not None}
    if missed := sorted((accepted | orders.keys()) - set(audited)):
        yield Finding("not audited", f"the audit saw {len(audited)} orders, and not {', '.join(missed[:3])}")
