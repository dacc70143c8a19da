"""Prints the scenarios of the demo and their checks."""

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding

from operations.audit import Report
from operations.commands.audit_display import audit_with_progress, result_table
from operations.commands.load_display import load_with_progress
from operations.load import LoadPlan, LoadReport
from operations.settings import Stack


class TerminalReporter:
    """Prints the reports of scenarios and remembers whether a check failed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.failed = False

    def begin_scenario(self, number: int, title: str) -> None:
        """Print the title of a scenario."""
        self.console.print(f"\n[bold]{number}. {escape(title)}[/]", highlight=False)

    def say(self, text: str) -> None:
        """Print an announcement."""
        self._print(f"[dim]{escape(text)}[/]")

    def note(self, text: str) -> None:
        """Print an observation."""
        self._print(f"  {escape(text)}")

    def check(self, passed: bool, text: str, actual: object = None) -> None:
        """Print a check with a tick, or in red with the actual result."""
        if passed:
            self._print(f"[green]✓[/] {escape(text)}")
        else:
            self.fail(f"failed: {text}" if actual is None else f"failed: {text}; actual: {actual}")

    def fail(self, text: str) -> None:
        """Print an error."""
        self.failed = True
        self._print(f"[red]✗ {escape(text)}[/]")

    async def load(self, stack: Stack, plan: LoadPlan) -> LoadReport:
        """Run a load test with a progress bar."""
        return await load_with_progress(stack, plan, self.console)

    async def audit(self, stack: Stack) -> Report:
        """Audit the stack with a progress bar and print a line for each invariant."""
        report = await audit_with_progress(stack, self.console)
        self._print(result_table(report))
        return report

    def _print(self, what: RenderableType) -> None:
        self.console.print(Padding(what, (0, 0, 0, 3), expand=False), highlight=False)
