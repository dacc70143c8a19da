"""Dead letters: taken from the broker, understood, replayed, edited, discarded. Nothing is ever deleted.

`service` is what the command line and the console use. `ingest` takes letters from the broker,
`replaying` sends them back; `letter`, `fingerprint`, `filters` and `editing` decide without I/O, `records` and `groups`
are the collections.
"""

from operations.dead_letters.service import (
    DeadLetterService,
    Filters,
    Group,
    GroupPage,
    InvalidBodyError,
    NotPossibleError,
    Page,
    letter_as_json,
)

__all__ = [
    "DeadLetterService",
    "Filters",
    "Group",
    "GroupPage",
    "InvalidBodyError",
    "NotPossibleError",
    "Page",
    "letter_as_json",
]
