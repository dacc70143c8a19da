"""The participants' records of an order: one row per participant of the saga, which says where it keeps its own.

The timeline, the audit and the cleanup read these records by the rows of this table. It is separate from
`order_service.participants` because no service knows the databases of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from order_service.participants import PAYMENT, STOCK, AnyParticipant
from shared import services
from shared.services import Service

Document = dict[str, Any]

ByParticipant = Mapping[str, Document]
"""The records that exist of one order, by the participant's name."""

NO_RECORDS: ByParticipant = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class ParticipantRecord:
    """A participant, and its record of an order: `_id` is the order's id, `status` the participant's state."""

    participant: AnyParticipant
    service: Service
    """The service that keeps the record, in its database."""
    collection: str
    noun: str
    """What operators call the record."""
    fields: tuple[str, ...] = ("status", "updatedAt")
    """The fields that the audit reads."""
    created_when_decided: bool = False
    """Whether the record is created with the decision; otherwise it is updated with it."""

    def state_in(self, order: Document) -> str | None:
        """Return the participant's state in a stored order."""
        state: str | None = order.get(self.participant.stored_field)
        return state

    def state(self, records: ByParticipant) -> str | None:
        """Return the recorded state, None if there is no record."""
        record = records.get(self.participant.name)
        return None if record is None else str(record.get("status"))

    def is_released(self, records: ByParticipant) -> bool:
        """Return whether the record says that nothing is held; without a record, that is not known."""
        return self.state(records) in self.participant.holds_nothing


PARTICIPANT_RECORDS = (
    ParticipantRecord(
        participant=STOCK,
        service=services.INVENTORY,
        collection="reservations",
        noun="reservation",
        fields=("status", "items.productId", "items.quantity", "slot.slotId", "slot.price", "returns", "updatedAt"),
        created_when_decided=True,
    ),
    ParticipantRecord(
        participant=PAYMENT,
        service=services.PAYMENT,
        collection="payments",
        noun="payment",
        fields=(
            "status",
            "amount",
            "currency",
            "retainerId",
            "transactionId",
            "captureOnConfirm",
            "nextLookupAt",
            "unpublished",
            "parts",
            "updatedAt",
        ),
    ),
)


def by_participant(found: Mapping[str, Mapping[str, Document]], order_id: str) -> ByParticipant:
    """Return the participants' records of an order, out of documents by collection and id."""
    return {
        row.participant.name: found[row.collection][order_id]
        for row in PARTICIPANT_RECORDS
        if order_id in found[row.collection]
    }


def recorded_states(records: ByParticipant) -> str:
    """Describe the states that the participants have recorded."""
    return ", ".join(f"{row.participant.name} {row.state(records) or 'nothing'}" for row in PARTICIPANT_RECORDS)


def order_states(order: Document) -> str:
    """Describe the states of the participants that a stored order has."""
    return " and ".join(f"{row.participant.name} {row.state_in(order)}" for row in PARTICIPANT_RECORDS)
