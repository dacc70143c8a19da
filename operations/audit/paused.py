"""Judges an order that waits, or did until lately, for a service whose consumption an operator has paused. Pure.

What waits for a paused inbox is not late. What was late before the pause began still is.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from operations.audit import orders, refunds, servers
from operations.audit.order_records import OrderRecords, is_delivered, is_given_up, time_of
from operations.audit.report import Violation
from operations.reading.participant_records import PARTICIPANT_RECORDS, ParticipantRecord
from order_service.participants import PENDING
from shared.pausing.pause import Pause, Pauses
from shared.services import ORDER, PROVISIONING

LATE = frozenset({"deadline", "provisioning", "compensation", "shipping", "capture", "refund late"})
"""The kinds of violations that say that an order has waited for too long."""

AFTER_PAUSE = timedelta(minutes=10)
"""The time that a service has for what has piled up."""

PausesByService = Mapping[str, Pauses]


def judge(records: OrderRecords, now: datetime, pauses: PausesByService) -> tuple[list[Violation], list[Violation]]:
    """Return the violations of the order, and what would be one without a pause."""
    found = orders.judge(records, now)
    if all(violation.kind not in LATE for violation in found) or (since := paused_since(records, now, pauses)) is None:
        return found, []
    late_before = {violation.kind for violation in orders.judge(records, since)}
    excused = [violation for violation in found if violation.kind in LATE - late_before]
    return [violation for violation in found if violation not in excused], excused


def is_stalled(records: OrderRecords, now: datetime, pauses: PausesByService) -> bool:
    """Return whether the order has waited for too long without a step, and not because of a pause."""
    if not orders.activity(records, now).stalled:
        return False
    since = paused_since(records, now, pauses)
    return since is None or orders.activity(records, since).stalled


def paused_since(records: OrderRecords, now: datetime, pauses: PausesByService) -> datetime | None:
    """Return when the pause began that the order waits for, or did until lately; None if it waits for none."""
    updated = time_of(records.order or {}, "updatedAt")
    known = (pause for service in awaited_services(records) for pause in pauses.get(service, ()))
    return min((pause.since for pause in known if _matters(pause, updated, now)), default=None)


def awaited_services(records: OrderRecords) -> frozenset[str]:
    """Return the names of the services that have to consume something before the order goes on."""
    order = records.order or {}
    waits_for = {row.service.name for row in PARTICIPANT_RECORDS if _is_open(row, records)}
    if servers.needs_message_about_job(records):
        waits_for.add(PROVISIONING.name)
    if refunds.is_waiting(order):
        waits_for |= {row.service.name for row in PARTICIPANT_RECORDS}
    return frozenset(waits_for | {ORDER.name})


def _is_open(row: ParticipantRecord, records: OrderRecords) -> bool:
    """Return whether the participant has a part to do, as far as the order knows."""
    order, participant = records.order or {}, row.participant
    state = row.state_in(order)
    if is_given_up(order):
        return state not in participant.holds_nothing
    if is_delivered(order):
        return state != participant.state_after_delivery()
    return state == PENDING or (participant.on_fulfilment is not None and state == participant.on_fulfilment.committed)


def _matters(pause: Pause, updated: datetime | None, now: datetime) -> bool:
    """Return whether the pause is running, or ended lately and after the order's last step."""
    if pause.end is None:
        return True
    return now < pause.end + AFTER_PAUSE and (updated is None or updated < pause.end)
