"""Lists groups of dead letters with their impact, the most harmful first unless another order is asked for."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.groups import Group, GroupOrder
from operations.dead_letters.service import DeadLetterService
from operations.impact.impact import Impact

MOST_RANKED = 1_000
"""Groups, those with the newest failures, whose harm is compared; any others come after them, newest failure first."""


class Sorting(StrEnum):
    """What a list of groups is sorted by."""

    HARM = "harm"
    NEWEST = "newest"
    OLDEST = "oldest"
    LETTERS = "letters"


class Impacts(Protocol):
    """Returns the impact of groups, by the numbers of their open letters; `ImpactReader` does."""

    async def of_groups(self, numbers: Mapping[str, int]) -> dict[str, Impact]:
        """Return the impact of each group."""


class RankedGroup(NamedTuple):
    """A group and its impact."""

    group: Group
    impact: Impact


class RankedPage(NamedTuple):
    """A page of groups, the number on all pages, and whether the harm of all of them was compared."""

    items: Sequence[RankedGroup]
    total: int
    all_ranked: bool = True


async def rank_groups(
    service: DeadLetterService,
    impacts: Impacts,
    filters: GroupFilters,
    *,
    by: Sorting = Sorting.HARM,
    limit: int,
    skip: int = 0,
) -> RankedPage:
    """Return a page of groups with their impact. Lets the driver's errors out."""
    if by is not Sorting.HARM or skip >= MOST_RANKED:
        order = GroupOrder.NEWEST if by is Sorting.HARM else GroupOrder(by)
        page = await service.group_page(filters, order=order, limit=limit, skip=skip)
        items = await _with_impact(impacts, page.items)
        return RankedPage(items, page.total, by is not Sorting.HARM or page.total <= MOST_RANKED)
    page = await service.group_page(filters, limit=MOST_RANKED)
    ranked = sorted(await _with_impact(impacts, page.items), key=rank)
    shown = ranked[skip : skip + limit]
    if len(shown) < limit and page.total > MOST_RANKED:
        rest = await service.group_page(filters, limit=limit - len(shown), skip=MOST_RANKED)
        shown += await _with_impact(impacts, rest.items)
    return RankedPage(shown, page.total, page.total <= MOST_RANKED)


def rank(ranked: RankedGroup) -> tuple[object, ...]:
    """Return the key that sorts groups: by harm, then by open letters, then by the newest failure."""
    group, impact = ranked
    return (*impact.harm, -group.open, -group.last_failed_at.timestamp(), group.fingerprint)


async def _with_impact(impacts: Impacts, groups: Sequence[Group]) -> list[RankedGroup]:
    found = await impacts.of_groups({group.fingerprint: group.open for group in groups})
    return [RankedGroup(group, found[group.fingerprint]) for group in groups]
