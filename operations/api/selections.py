"""Which dead letters a request is about, in a query or in a body."""

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Query
from pydantic import Field

from operations.dead_letters.filters import Filters
from operations.dead_letters.status import OUTCOMES, STATUSES
from shared.cursors import MAX_LIMIT
from shared.http import Body, invalid
from shared.validation import Moment

MOST_IDS = 1000

Text = Annotated[str, Field(max_length=300)]


class Selection(Body):
    """Dead letters by their ids, or those that match all that is given: one of the two."""

    ids: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=MOST_IDS)] | None = None
    all: bool = Field(False, description="every open letter")
    service: Text | None = Field(None, description="the service that could not handle them")
    error: Text | None = Field(None, description="the type of the error")
    type: Text | None = Field(None, description="the routing key")
    order_id: Text | None = None
    group: Text | None = Field(None, description="the fingerprint of the group")
    text: Text | None = Field(None, description="words in the body, the error or the ids")
    since: Annotated[Moment, Field(strict=False)] | None = None
    until: Annotated[Moment, Field(strict=False)] | None = None

    def filters(self, now: datetime) -> Filters:
        """Return the letters that have failed by now. Raises the 422 problem unless they are named in one way."""
        matched = self.model_dump(exclude={"ids", "all"}, exclude_none=True)
        if [self.ids is not None, self.all, bool(matched)].count(True) != 1:
            raise invalid(("ids", "give either ids, filters or all"))
        if self.ids is not None:
            return Filters(ids=tuple(self.ids))
        return Filters(**matched | {"until": min(self.until or now, now)})


Asked = Annotated[str | None, Query(max_length=300)]


LetterIds = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100)]] | None,
    Query(alias="id", max_length=MAX_LIMIT, description="Ids of letters, or their first characters"),
]


def filters_of_query(
    ids: LetterIds = None,
    service: Asked = None,
    error: Asked = None,
    routing_key: Annotated[str | None, Query(alias="type", max_length=300)] = None,
    status: Annotated[list[str] | None, Query(max_length=10)] = None,
    order_id: Annotated[str | None, Query(alias="orderId", max_length=300)] = None,
    group: Asked = None,
    text: Asked = None,
    replay: Asked = None,
    outcome: Asked = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Filters:
    """Return the letters that a query asks for, by default the open ones. Raises the 422 problem."""
    if unknown := [name for name in status or () if name not in STATUSES]:
        raise invalid(("status", f"is {unknown[0]!r}, must be one of {', '.join(STATUSES)}"))
    if outcome is not None and (outcome not in OUTCOMES or replay is None):
        raise invalid(("outcome", f"is {outcome!r}, must be one of {', '.join(OUTCOMES)}, with a replay"))
    return Filters(
        ids=tuple(dict.fromkeys(ids or ())),
        service=service,
        error=error,
        type=routing_key,
        status=tuple(status or ()),
        order_id=order_id,
        group=group,
        text=text,
        replay=replay,
        outcome=outcome,
        since=since,
        until=until,
    )


QueryFilters = Annotated[Filters, Depends(filters_of_query)]
