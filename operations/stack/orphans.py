"""Ends a stack, and the processes that a killed supervisor left behind."""

from operations.stack.layout import Layout
from operations.stack.processes import end_all, find, find_marked
from operations.stack.services import GRACE_SECONDS
from operations.stack.state import State, acquire_lock, find_lock_holder, read_state_if_readable
from shared.services import SERVICES

SERVERS_GRACE_SECONDS = 30.0
SUPERVISOR_ENDS_WITHIN_SECONDS = 60.0
"""The supervisor gives services 12 s and servers 30 s before it kills them."""


def end_stack(layout: Layout) -> None:
    """End every process of a stack. Raises AlreadyRunsError if it is started again in this moment, and OSError."""
    if supervisor := find_lock_holder(layout):
        end_all([supervisor], SUPERVISOR_ENDS_WITHIN_SECONDS)
    with acquire_lock(layout):
        end_orphans(layout, read_state_if_readable(layout))


def end_orphans(layout: Layout, state: State) -> int:
    """End every process of a stack without a supervisor: services, then servers, then unrecorded processes.

    Returns their number. The caller holds the lock of the data directory, or knows that its supervisor is dead.
    """
    recorded = [
        (process.name in SERVICES, found)
        for process in state.processes
        if process.identity is not None and (found := find(process.identity)) is not None
    ]
    services = [found for is_service, found in recorded if is_service]
    servers = [found for is_service, found in recorded if not is_service]
    end_all(services, GRACE_SECONDS)
    end_all(servers, SERVERS_GRACE_SECONDS)
    others = find_marked(layout.root)
    end_all(others, GRACE_SECONDS)
    return len(services) + len(servers) + len(others)
