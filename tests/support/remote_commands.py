"""The table of docs/command-line.md: which commands act through a console, and why the others do not."""

import sys
from pathlib import Path

from operations.commands.remote.reach import REFUSALS, REMOTE
from tests.support.drawn_parts import redraw


def table() -> str:
    """The commands that work from another machine, then the others, with the reason."""
    works = ", ".join(f"`{path}`" for path in sorted(REMOTE) if path != "order trace")
    refusals: dict[tuple[str, str], list[str]] = {}
    for path, refusal in sorted(REFUSALS.items()):
        refusals.setdefault(refusal, []).append(f"`{path}`")
    rows = "".join(f"| {', '.join(paths)} | {why} | {instead} |\n" for (why, instead), paths in refusals.items())
    return f"These work: {works}.\n\n| these do not | because | instead |\n|---|---|---|\n{rows}"


def redrawn(page: str) -> str:
    """The page with the present table between its marks."""
    return redraw(page, "remote commands", table())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(redrawn(target.read_text()))
