"""Which lists have saved views, and which of their parameters a view keeps. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from shared.access.permissions import Permission

MOST_CHARACTERS = 2000
"""The longest query of a view."""


NOT_KEPT = ("customer", "text", "reason", "error")
"""Names and free text: they may be personal data, which would stay here, for the whole team, after it was erased."""


class ListPage(NamedTuple):
    """A list: its address, the permission to see it, and the parameters that a view of it keeps.

    The place in the list is not kept, and neither is what is in NOT_KEPT.
    """

    path: str
    permission: Permission
    parameters: Sequence[str]


_TIMES = ("span", "since", "until")

LISTS: Mapping[str, ListPage] = {
    page.path: page
    for page in (
        ListPage(
            "/orders",
            Permission.ORDERS_READ,
            ("id", "number", "user", "owner", "product", "status", "code", *_TIMES, "sort", "open"),
        ),
        ListPage("/dead-letters", Permission.LETTERS_READ, ("cause", "product", "inbox", "status", *_TIMES, "sort")),
        ListPage(
            "/dead-letters/list",
            Permission.LETTERS_READ,
            (
                *("service", "inbox", "type", "order", "product", "status"),
                *(*_TIMES, "sort", "replay", "outcome", "group"),
            ),
        ),
        ListPage("/incidents", Permission.LETTERS_READ, ("kind", "severity", "service", "since", "until")),
    )
}
"""The lists that have saved views, by their addresses."""


def kept_query(page: ListPage, query: str) -> str:
    """Return of a query what a view of the page keeps, always in the same order; empty if nothing is left."""
    given = dict(parse_qsl(query[: 2 * MOST_CHARACTERS], errors="replace"))
    kept = [(name, given[name].strip()) for name in page.parameters if given.get(name, "").strip()]
    return urlencode(kept)


def address_of(page: ListPage, query: str) -> str:
    """Return the address of a list with a query."""
    return f"{page.path}?{query}" if query else page.path
