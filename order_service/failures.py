"""Why an order did not go through, for programs: the code of an event that ended it. Pure."""

from order_service.events import Event
from order_service.participants import PARTICIPANTS, Refusal
from shared.contracts.failures import FailureCode

GENERAL = {
    **{participant.refused.routing_key: f"{participant.name}_refused" for participant in PARTICIPANTS},
    "provisioning.failed": FailureCode.PROVISIONING_FAILED.value,
    "payment.capture_failed": FailureCode.CAPTURE_FAILED.value,
    "order.cancel_requested": FailureCode.CANCELLED_BY_CLIENT.value,
    "order.deadline_passed": FailureCode.TIMED_OUT.value,
    **{participant.undone.routing_key: FailureCode.RETURNED_EARLY.value for participant in PARTICIPANTS},
}
"""The code for which an order did not go through, by the event that led to its end: all that an earlier release says.

They are the classes of reason in the metrics as well: the reasons themselves are unbounded in number.
"""


def code_of(event: Event | Refusal) -> str:
    """Return the code that an event brings, the general one for its kind if its sender is of an earlier release."""
    code: str | None = getattr(event, "code", None)
    return code or general_code(event.routing_key)


def general_code(cause: str | None) -> str:
    """Return the code for the event that led to the end of an order, `other` if there is none."""
    return GENERAL.get(cause or "", FailureCode.OTHER.value)
