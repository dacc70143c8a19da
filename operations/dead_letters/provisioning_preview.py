"""What a replay would do with the job of a server, by the provisioning service's own decisions. Pure.

Whether a provider is configured is not recorded, and what a worker does with the job that it runs is not known before.
"""

from datetime import datetime

from operations.dead_letters.effects import Effect, Preview, Unreadable, arrow, no_preview
from provisioning_service.job import Job, State
from provisioning_service.lifecycle import answers, commanded, without_final_message
from shared.contracts import CancelProvisioning, OrderMessage, ProvisionServer

Jobs = dict[str, Job | Unreadable]
"""Jobs by order."""


def preview_provisioning(message: OrderMessage, jobs: Jobs, now: datetime) -> Preview:
    """Return what the provisioning service would do with a message, and change the jobs as it would."""
    recorded = jobs.get(message.order_id)
    if isinstance(recorded, Unreadable):
        return Preview(Effect.UNKNOWN, recorded.why)
    if not isinstance(message, ProvisionServer | CancelProvisioning):
        return no_preview(message)
    if recorded is not None and recorded.state is State.RUNNING and isinstance(message, CancelProvisioning):
        why = "the worker that runs the job honours it, unless it has bought a server by then"
        return Preview(Effect.UNKNOWN, f"{message.routing_key} can be read; {why}")
    after = without_final_message(commanded(recorded, message, now, 0), recorded)
    sends = tuple(each.routing_key for each in answers(after))
    if recorded is not None and not _has_effect(recorded, after):
        return Preview(Effect.NOTHING, f"provisioning {recorded.state.value}", sends=sends)
    jobs[message.order_id] = after
    known = recorded.sequence if recorded else 0
    sends += tuple(each.routing_key for each in after.outbox if each.sequence > known)
    return Preview(Effect.CHANGES, _change(message, recorded, after), sends=sends)


def _has_effect(before: Job, after: Job) -> bool:
    """Return whether a command has done more than to note that it came: what has ended cannot be cancelled."""
    cancels = after.cancel_run > (max(before.cancel_run, before.run) if before.ended else before.cancel_run)
    return cancels or (before.state, before.run) != (after.state, after.run)


def _change(message: OrderMessage, before: Job | None, after: Job) -> str:
    if before is not None and (before.state, before.run) == (after.state, after.run):
        return f"provisioning {after.state.value}, records {message.routing_key}"
    change = arrow("provisioning ", before.state.value if before else None, after.state.value)
    if after.failure_reason:
        return f"{change} ({after.failure_reason})"
    return change if after.ended else f"{change} (FAILED if no provider is configured)"
