"""The command `ordersaga search`: what the search box of the console finds."""

from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from operations.commands.operator import current_operator
from operations.commands.remote.api import open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import foreign, open_console, print_json
from operations.console.upstream import why_not
from operations.reading.connection import open_mongodb
from operations.search.lookups import Lookups
from operations.search.searching import LONGEST
from operations.search.searching import search as find
from operations.settings import RemoteStack, Stack
from operations.sign_in.person import Person
from shared.access.permissions import Role


def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="An id, a number, a name, or a part of one.")],
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find what has an id, and what names it: orders, letters, products, servers, accounts, users and more.

    Things of exactly this id come first. It says in which places it could not look, or may not.

    Exit status 0 if something was found, 1 if nothing was, 2 for wrong usage, 3 if a server cannot be reached.
    """
    text = " ".join(words).strip()
    if not 1 <= len(text) <= LONGEST:
        raise typer.BadParameter(f"has {len(text)} characters; 1 to {LONGEST} are allowed", param_hint="WORDS")
    found = uvloop.run(_find(chosen_target(), text))
    if as_json_document:
        print_json(found)
    else:
        _show(found)
    if not found["hits"]:
        raise typer.Exit(3 if any(place["failed"] for place in found["notLookedIn"]) else 1)


async def _find(target: Stack | RemoteStack, text: str) -> dict[str, Any]:
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            found: dict[str, Any] = await api.get("search", q=text)
            return found
    name = current_operator()
    async with open_mongodb(target.mongodb_url, purpose="the search", name="ordersaga-search") as client:
        places = Lookups(client, target.database_prefix).places()
        person = Person(name, name, frozenset({Role.ADMIN}))
        return (await find(places, text, person.principal(), why_not)).as_json()


def _show(found: dict[str, Any]) -> None:
    console = open_console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("what", "name", "detail", "page of the console"):
        table.add_column(name, overflow="fold")
    for hit in found["hits"]:
        table.add_row(*(foreign(hit[name] or "—") for name in ("what", "name", "detail", "page")))
    console.print(table if found["hits"] else "Nothing was found.")
    for place in found["notLookedIn"]:
        why = place["failed"] or f"needs the permission {place['needs']}"
        console.print(foreign(f"not looked in: {place['name']} ({why})"), soft_wrap=True)
