"""Dead letters: taken from the broker, understood, replayed, edited, discarded. Nothing is ever deleted.

`DeadLetters` (in `desk`) is the way in for the command line and the console. `ingest` takes letters from the broker,
`replaying` sends them back; `letter`, `fingerprint`, `filters` and `editing` decide without I/O, `records` and `groups`
are the collections; `command` is `ordersaga dead-letters`, `display` what it prints.
"""

from operations.dead_letters.desk import (
    DeadLetters,
    Filters,
    Group,
    GroupPage,
    InvalidBodyError,
    NotPossibleError,
    Page,
    letter_as_json,
)

__all__ = [
    "DeadLetters",
    "Filters",
    "Group",
    "GroupPage",
    "InvalidBodyError",
    "NotPossibleError",
    "Page",
    "letter_as_json",
]
