"""What stacks in temporary directories have in common: their settings, their display and their end."""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from operations.stack.layout import Layout
from operations.stack.orphans import end_stack
from operations.stack.run import StackListener

# The locations of the servers' programs depend on the machine. Any other setting would change what is run.
KEPT_SETTINGS = ("ORDERSAGA_MONGOD", "ORDERSAGA_RABBITMQ_SERVER")


class StackDisplay(Protocol):
    """Shows the start and the end of a temporary stack."""

    def starting(self, layout: Layout) -> AbstractContextManager[StackListener]:
        """Show the start."""

    def stopping(self) -> AbstractContextManager[object]:
        """Show the end."""

    def data_kept(self, root: Path) -> None:
        """Show where the data and logs of a failed run are."""


def without_settings() -> dict[str, str]:
    """Return the environment without the settings of other stacks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    return kept | {name: os.environ[name] for name in KEPT_SETTINGS if name in os.environ}


def own_environment(root: Path) -> dict[str, str]:
    """Return the environment of a stack that ends with its command.

    It has a state directory of its own: other commands must not find this stack as the one used last.
    """
    return {**without_settings(), "XDG_STATE_HOME": str(root / "state")}


def end(layout: Layout, display: StackDisplay) -> None:
    """End every process of the stack; ctrl-C is ignored meanwhile."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with display.stopping():
            end_stack(layout)
    finally:
        signal.signal(signal.SIGINT, before)
