"""Payments out of the documents that `payments` stores. Pure."""

from collections.abc import Mapping

from payment_service.lifecycle import Part, PartStatus, Payment, PaymentStatus
from shared.database import Document

FIELDS: Mapping[str, str] = {
    "status": "status",
    "user_id": "userId",
    "owner_id": "ownerId",
    "amount": "amount",
    "currency": "currency",
    "token": "token",
    "capture_on_confirm": "captureOnConfirm",
    "capture_requested": "captureRequested",
    "retainer_id": "retainerId",
    "transaction_id": "transactionId",
    "failure_reason": "failureReason",
    "refund_requested": "refundRequested",
    "next_lookup_at": "nextLookupAt",
    "lookups": "lookups",
    "unpublished": "unpublished",
    "traceparent": "traceparent",
    "created_at": "createdAt",
    "updated_at": "updatedAt",
}
"""The attributes of a payment that are stored as they are, and the names of their fields."""


def _part(document: Document) -> Part:
    return Part(
        refund_id=document["refundId"],
        amount=document["amount"],
        status=PartStatus(document["status"]),
        failure_reason=document.get("failureReason"),
        entry_id=document.get("entryId"),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
    )


def payment_of(document: Document) -> Payment:
    """Return the payment of a document."""
    known = {attribute: document[name] for attribute, name in FIELDS.items() if name in document}
    known["status"] = PaymentStatus(document["status"])
    known["parts"] = tuple(_part(part) for part in document.get("parts", ()))
    known["parts_version"] = document.get("partsVersion", 0)
    return Payment(order_id=document["_id"], **known)
