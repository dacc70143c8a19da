"""The options that several commands have."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PageCursor = Annotated[
    str | None,
    typer.Option("--cursor", help="Cursor that the previous page printed.", show_default="the first page"),
]
