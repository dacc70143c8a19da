"""The interface through which scenarios report; the command prints the reports on the terminal."""

from typing import Protocol

from operations.audit import Report
from operations.load import LoadPlan, LoadReport
from operations.settings import Stack


class Reporter(Protocol):
    """Receives the announcements and the checks of the scenarios."""

    def begin_scenario(self, number: int, title: str) -> None:
        """Begin a scenario."""

    def say(self, text: str) -> None:
        """Announce the next step."""

    def note(self, text: str) -> None:
        """Report an observation that is not checked."""

    def check(self, passed: bool, text: str, actual: object = None) -> None:
        """Report a check; `actual` is shown if it failed."""

    def fail(self, text: str) -> None:
        """Report that the demo cannot continue."""

    async def load(self, stack: Stack, plan: LoadPlan) -> LoadReport:
        """Run a load test and show its progress."""

    async def audit(self, stack: Stack) -> Report:
        """Audit a stack and show the result for each invariant."""
