"""Which letters an act on many is about: the ticked ones, or everything that matches the filters of the page. Pure."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from operations.dead_letters.filters import Filters, discardable, replayable, restorable, until_now
from operations.dead_letters.status import DEAD, DISCARDED, OPEN, PENDING, STATUSES
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import conflict, invalid

FiltersOf = Callable[[dict[str, str], datetime], Filters]
"""Reads the filters of the list's form."""

_STORED = TypeAdapter(Filters)


class LettersAct(NamedTuple):
    """An act on many letters: what it is called, who may do it, to which letters, and its effects."""

    name: str
    title: str
    participle: str
    permission: Permission
    statuses: tuple[str, ...]
    query: Callable[[Filters], Document]
    warning: str

    @property
    def address(self) -> str:
        """The address of its confirmation."""
        return f"/dead-letters/many/{self.name}"


REPLAY = LettersAct(
    "replay",
    "Replay",
    "replayed",
    Permission.LETTERS_DECIDE,
    (DEAD, PENDING),
    replayable,
    "Each letter is sent again to the inbox in which it failed.",
)
EDIT = LettersAct(
    "edit",
    "Edit",
    "edited",
    Permission.LETTERS_EDIT,
    (DEAD, PENDING),
    replayable,
    "Each letter to which the patch applies is sent again with its new body. The originals are kept.",
)
DISCARD = LettersAct(
    "discard",
    "Discard",
    "discarded",
    Permission.LETTERS_DECIDE,
    (DEAD, PENDING),
    discardable,
    "The letters are set aside, and not deleted: they can be restored. Their orders are not affected.",
)
RESTORE = LettersAct(
    "restore",
    "Restore",
    "restored",
    Permission.LETTERS_DECIDE,
    (DISCARDED,),
    restorable,
    "The letters wait for a decision again. Nothing is sent.",
)
LETTERS_ACTS = (REPLAY, EDIT, DISCARD, RESTORE)


def statuses_shown(filters: Filters) -> tuple[str, ...]:
    """Return the statuses of the letters that a page with these filters shows."""
    return filters.status or (STATUSES if filters.group or filters.replay else OPEN)


def offered(filters: Filters) -> list[LettersAct]:
    """Return the acts that are possible for letters on the page with these filters."""
    return [act for act in LETTERS_ACTS if set(statuses_shown(filters)) & set(act.statuses)]


def select(
    act: LettersAct,
    ids: tuple[str, ...],
    matching: str,
    parameters: Mapping[str, str],
    filters_of: FiltersOf,
    now: datetime,
) -> Filters:
    """Return what is selected. Raises the 409 problem if that is nothing, or none of it could be acted on.

    What fails after now does not match: nobody has seen it.
    """
    if not matching:
        if not ids:
            raise conflict("No letter is selected: tick some, or everything that matches")
        return Filters(ids=ids)
    found = filters_of(defaultdict(str, parameters), now)
    found = until_now(found, now)
    # Only who names a letter by its id has seen that its last replay is pending.
    if not set(statuses_shown(found)) & set(act.statuses) - {PENDING}:
        raise conflict(f"None of the letters that match can be {act.participle}")
    return found


def write_selection(filters: Filters) -> str:
    """Return a selection as a form carries it."""
    return _STORED.dump_json(filters).decode()


def read_selection(text: str) -> Filters:
    """Return the selection that a form carries. Raises the 422 problem for anything else."""
    try:
        return _STORED.validate_json(text)
    except ValidationError:
        raise invalid(("selection", "is not the selection of a form of this console")) from None


def back_to(filters: Filters, *, status: str = "") -> str:
    """Return the address of the page with the letters that a selection is about."""
    if filters.group and re.fullmatch("[0-9a-f]+", filters.group):
        return f"/dead-letters/groups/{filters.group}"
    return f"/dead-letters/list?status={status}" if status else "/dead-letters/list"
