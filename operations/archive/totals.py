"""What orders still count for once their records are gone; see operations/reading/archived.py. Pure: no I/O."""

from collections import Counter
from collections.abc import Iterable

from operations.audit.stock import held_by, is_reserved, keeps_units
from operations.reading.archived import ADDRESSES, ORDERS, RETAINER, STOCK
from operations.removal.removable import Candidate, Document
from order_service.participants import PAYMENT as PAYMENT_PARTICIPANT
from order_service.participants import STOCK as STOCK_PARTICIPANT


def totals_of(candidates: Iterable[Candidate]) -> dict[str, Counter[str]]:
    """Return what these orders add to each total."""
    totals: dict[str, Counter[str]] = {ORDERS: Counter(), ADDRESSES: Counter()}
    for candidate in candidates:
        totals[ORDERS][str(candidate.order.get("status"))] += 1
        totals[ADDRESSES]["count"] += len(candidate.addresses)
        for key, changes in (*_stock(candidate), *_retainer(candidate)):
            totals.setdefault(key, Counter()).update(changes)
    return {key: changes for key, changes in totals.items() if any(changes.values())}


def _stock(candidate: Candidate) -> list[tuple[str, dict[str, int]]]:
    reservation = candidate.by_participant.get(STOCK_PARTICIPANT.name)
    if reservation is None or not keeps_units(reservation):
        return []
    left = not is_reserved(reservation)
    units = {key: held_by(reservation, key) for key in _counted_ids(reservation)}
    return [(f"{STOCK}{key}", {"units": held, "shipped": held if left else 0}) for key, held in units.items()]


def _counted_ids(reservation: Document) -> set[str]:
    slot_id = (reservation.get("slot") or {}).get("slotId")
    return {item["productId"] for item in reservation.get("items") or ()} | ({slot_id} if slot_id else set())


def _retainer(candidate: Candidate) -> list[tuple[str, dict[str, int]]]:
    payment = candidate.by_participant.get(PAYMENT_PARTICIPANT.name) or {}
    if payment.get("retainerId") is None or payment.get("status") != PAYMENT_PARTICIPANT.succeeded:
        return []
    parts = payment.get("parts") or ()
    kept = payment.get("amount", 0) - sum(part["amount"] for part in parts if part.get("status") == "REFUNDED")
    return [(f"{RETAINER}{payment['retainerId']}", {"amount": kept, "orders": 1})] if kept else []
