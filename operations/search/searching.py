"""Searches in all places that a person may look in, at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from operations.search.hits import Found, Hit, Place, without_repeats
from operations.search.lookups import Lookup
from shared.access.principal import Principal

LONGEST = 200
"""Characters of a text that is searched for."""

Attempt = Callable[[Awaitable[list[Hit]]], Awaitable[list[Hit] | str]]
"""Awaits what a place has; returns why it cannot be read instead of raising that."""


async def search(places: Sequence[Lookup], text: str, caller: Principal, attempt: Attempt) -> Found:
    """Return what is found in the places that the caller may look in."""

    async def look(lookup: Lookup) -> tuple[Place, list[Hit]]:
        if not caller.may(lookup.needs):
            return Place(lookup.place, needs=lookup.needs), []
        found = await attempt(lookup.find(text))
        return (Place(lookup.place, failed=found), []) if isinstance(found, str) else (Place(lookup.place), found)

    looked = await asyncio.gather(*(look(lookup) for lookup in places))
    return Found(without_repeats([hit for _, hits in looked for hit in hits]), [place for place, _ in looked])
