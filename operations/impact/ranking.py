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
    """A page of groups, the number on all pages, and how far they are sorted by harm.

    The harm of all of them may not have been compared, or some of it not counted to the end.
    """

    items: Sequence[RankedGroup]
    total: int
    all_compared: bool = True
    all_counted: bool = True

    @property
    def all_ranked(self) -> bool:
        """Whether no group does more harm than one before it."""
        return self.all_compared and self.all_counted

    @property
    def caveat(self) -> str:
        """What is to be known about the order of the groups; empty if all are ranked."""
        said = []
        if not self.all_compared:
            said.append(
                f"The harm of the {MOST_RANKED:,} groups with the newest failures was compared; the others follow them."
            )
        if not self.all_counted:
            said.append(
                "Some have too many letters to look at all of them, and may do more harm than those before them."
            )
        return " ".join(said)


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
    if by is not Sorting.HARM:
        page = await service.group_page(filters, order=GroupOrder(by), limit=limit, skip=skip)
        return RankedPage(await _with_impact(impacts, page.items), page.total)
    if skip >= MOST_RANKED:
        page = await service.group_page(filters, limit=limit, skip=skip)
        return RankedPage(await _with_impact(impacts, page.items), page.total, page.total <= MOST_RANKED)
    page = await service.group_page(filters, limit=MOST_RANKED)
    ranked = sorted(await _with_impact(impacts, page.items), key=rank)
    shown = ranked[skip : skip + limit]
    if len(shown) < limit and page.total > MOST_RANKED:
        rest = await service.group_page(filters, limit=limit - len(shown), skip=MOST_RANKED)
        shown += await _with_impact(impacts, rest.items)
    return RankedPage(shown, page.total, page.total <= MOST_RANKED, all(each.impact.complete for each in ranked))


def rank(ranked: RankedGroup) -> tuple[object, ...]:
    """Return the key that sorts groups: by harm, then by open letters, then by the newest failure."""
    group, impact = ranked
    return (*impact.harm, -group.open, -group.last_failed_at.timestamp(), group.fingerprint)


async def _with_impact(impacts: Impacts, groups: Sequence[Group]) -> list[RankedGroup]:
    found = await impacts.of_groups({group.fingerprint: group.open for group in groups})
    return [RankedGroup(group, found[group.fingerprint]) for group in groups]
