"""Detects a data directory that was moved or copied.

RabbitMQ stores absolute paths in the files of its quorum queues. A node on a copy would write to the original's files,
and a node whose directory was moved does not find its own. The processes in a copied state belong to the original too.
"""

import os

from operations.errors import CommandError
from operations.stack.files import write_private
from operations.stack.layout import Layout


class MovedError(CommandError):
    """The data directory was moved or copied from where its stack was created."""


def record_location(layout: Layout) -> None:
    """Record that the stack was created in this directory."""
    write_private(layout.location_file, os.fsencode(layout.root.resolve()) + b"\n")


def has_moved(layout: Layout) -> bool:
    """Return whether the directory was created elsewhere, according to its record."""
    recorded = _recorded(layout)
    return recorded is not None and recorded != os.fsencode(layout.root.resolve())


def check_location(layout: Layout) -> None:
    """Record the location of the directory if there is no record yet.

    Raises MovedError, with instructions, if it was created elsewhere.
    """
    if has_moved(layout):
        created_in = os.fsdecode(_recorded(layout) or b"") or "(nothing)"
        raise MovedError(
            f"the data in {layout.root} was moved or copied: according to {layout.location_file} it was created in "
            f"{created_in}, and RabbitMQ's files refer to that path. Move it back, or start with empty data: "
            "`ordersaga up --fresh`"
        )
    if _recorded(layout) is None:
        record_location(layout)


def _recorded(layout: Layout) -> bytes | None:
    try:
        return layout.location_file.read_bytes().rstrip(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
