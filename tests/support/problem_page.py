"""The lists of docs/problems.md: a heading for each problem type, and the table of failure codes.

`python -m tests.support.problem_page` writes them; `make docs` does.
"""

from collections.abc import Iterable
from pathlib import Path

from shared.contracts.failures import FailureCode
from shared.problems import PROBLEM_TYPES
from tests.support.drawn_parts import redraw

PAGE = Path("docs/problems.md")
_LISTS = ("types", "codes")


def redrawn(page: str) -> str:
    """Return the page with the present lists between their marks."""
    for name, lines in zip(_LISTS, (_types(), _codes()), strict=True):
        page = redraw(page, name, "".join(f"{line}\n" for line in lines))
    return page


def _types() -> Iterable[str]:
    for each in PROBLEM_TYPES.values():
        yield f"### `{each.name}`"
        yield ""
        yield f"{each.status.value}, “{each.title}”. {each.meaning}"
        yield ""
        yield f"> {each.example}"
        yield ""


def _codes() -> Iterable[str]:
    yield "| code | meaning |"
    yield "|---|---|"
    for code in FailureCode:
        yield f"| `{code}` | {code.meaning} |"


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
