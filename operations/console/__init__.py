"""The console: pages, made on the server, on which an operator sees what happens and does what is to be done.

Owns no records: it reads those of all services, acts on orders through their HTTP interfaces alone, and leaves dead
letters and the log of actions to the modules that keep them.
"""

from operations.console.dependencies import ConsoleDependencies
from operations.console.router import create_router
from operations.console.upstream import Services

__all__ = ["ConsoleDependencies", "Services", "create_router"]
