"""The console: server-rendered pages for operators, to watch the stack and to act on it.

Owns no records: it reads those of all services, acts on orders only through the services' HTTP interfaces, and leaves
dead letters and the log of actions to their modules.
"""

from operations.console.approvals import Executor
from operations.console.bulk_executor import BulkExecutor
from operations.console.dependencies import ConsoleDependencies
from operations.console.incident_watch import IncidentWatch
from operations.console.outages import StackChecks
from operations.console.people import ConsolePeople, IdentityProxy
from operations.console.router import create_router
from operations.console.upstream import Services

__all__ = [
    "BulkExecutor",
    "ConsoleDependencies",
    "ConsolePeople",
    "Executor",
    "IdentityProxy",
    "IncidentWatch",
    "Services",
    "StackChecks",
    "create_router",
]
