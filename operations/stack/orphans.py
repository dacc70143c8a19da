"""Ends the processes that a killed supervisor left behind."""

from operations.stack.layout import Layout
from operations.stack.processes import end_all, find, find_marked
from operations.stack.services import GRACE_SECONDS
from operations.stack.state import State
from shared.services import SERVICES

SERVERS_GRACE_SECONDS = 30.0


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
