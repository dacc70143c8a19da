"""What a chapter shows: a line for what is about to happen, a line for each claim and what was seen."""

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding


class Reporter:
    """Prints a story and keeps in mind whether all of it was true."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.broken: list[str] = []

    @property
    def held(self) -> bool:
        """Whether every claim so far was true."""
        return not self.broken

    def open(self, number: int, title: str) -> None:
        """Begin a chapter."""
        self.console.print(f"\n[bold]{number}. {escape(title)}[/]", highlight=False)

    def tell(self, text: str) -> None:
        """Say what is about to happen."""
        self._print(f"[dim]{escape(text)}[/]")

    def note(self, text: str) -> None:
        """Say what was seen, where nothing is claimed."""
        self._print(f"  {escape(text)}")

    def claim(self, holds: bool, text: str, seen: object = None) -> None:
        """Say what is claimed, with a tick if it holds, in red with what was seen instead if not."""
        if holds:
            self._print(f"[green]✓[/] {escape(text)}")
            return
        self.broken.append(text)
        instead = "" if seen is None else f", but: {seen}"
        self._print(f"[red]✗ not so: {escape(text + instead)}[/]")

    def fail(self, text: str) -> None:
        """Say that a chapter could not be told to its end."""
        self.broken.append(text)
        self._print(f"[red]✗ {escape(text)}[/]")

    def show(self, table: RenderableType) -> None:
        """Print something that is no line of text."""
        self._print(table)

    def _print(self, what: RenderableType) -> None:
        self.console.print(Padding(what, (0, 0, 0, 3), expand=False), highlight=False)
