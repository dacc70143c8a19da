"""Where a data directory lay when its stack was made, so that one that was moved or copied is not taken for it.

RabbitMQ keeps absolute paths in the files of its quorum queues. A node on a copy would write into the original's
files, and one whose directory was moved does not find its own. The processes that a copied state names are the
original's too.
"""

import os

from operations.stack.files import write_private
from operations.stack.layout import Layout


class MovedError(Exception):
    """The data directory is not where its stack was made."""


def record_origin(layout: Layout) -> None:
    """Record that the stack was made in this directory."""
    write_private(layout.origin_file, os.fsencode(layout.root.resolve()) + b"\n")


def has_moved(layout: Layout) -> bool:
    """Return whether the directory is recorded to have been made elsewhere."""
    recorded = _recorded(layout)
    return recorded is not None and recorded != os.fsencode(layout.root.resolve())


def check_origin(layout: Layout) -> None:
    """Record the directory if it has no record yet.

    Raises MovedError, with what to do, if it was made elsewhere.
    """
    if has_moved(layout):
        made_in = os.fsdecode(_recorded(layout) or b"") or "(nothing)"
        raise MovedError(
            f"the data in {layout.root} was moved or copied here: {layout.origin_file} says that it was made in "
            f"{made_in}, and RabbitMQ's files refer to that path. Move it back there, or start here with empty data: "
            "`ordersaga up --fresh`"
        )
    if _recorded(layout) is None:
        record_origin(layout)


def _recorded(layout: Layout) -> bytes | None:
    try:
        return layout.origin_file.read_bytes().rstrip(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
