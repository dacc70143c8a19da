"""An order's timeline as a JSON document: of the command and of the operations API. Pure."""

from collections.abc import Sequence
from typing import Any

from operations.timeline.timeline import TimelineRecords, TimelineStep, open_steps


def timeline_as_json(records: TimelineRecords, steps: Sequence[TimelineStep]) -> dict[str, Any]:
    """Return the timeline as JSON; fields that do not apply are null."""
    order = records.order or {}
    return {
        "orderId": records.order_id,
        "found": True,
        "status": order.get("status"),
        "settled": order.get("settled"),
        "failureReason": order.get("failureReason"),
        "traceparent": order.get("traceparent"),
        "steps": [step.as_json() for step in steps],
        "waitingFor": [step.as_json() for step in open_steps(steps)],
    }
