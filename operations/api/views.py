"""Parts of answers that several routes of the operations API have."""

from collections.abc import Sequence
from datetime import datetime

from fastapi import Response
from pydantic import Field

from operations.console.dependencies import ConsoleDependencies
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter import why_foreign
from operations.impact.of_letters import concerned
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import View, json_response


class ImpactView(View):
    """The orders that are affected; amounts by currency."""

    orders: int
    orders_by_status: dict[str, int]
    unsettled_orders: int
    customers: int
    amounts: dict[str, float]
    amounts_at_stake: dict[str, float] = Field(description="of the orders that are not settled")
    next_deadline: datetime | None = Field(description="when the first of the orders times out")
    without_order: int = Field(description="ids that the order service does not know")
    complete: bool = Field(description="false if there are more letters than were looked at")


class ForeignView(View):
    """A letter whose sender has no right to send such a message, and why."""

    id: str
    why: str


class ConcernedView(View):
    """What an act on letters is about; foreign ones are left out of a replay unless they are named by their ids."""

    letters: int
    impact: ImpactView
    foreign: list[ForeignView]
    until: datetime | None = Field(description="letters that fail from then on are not among them; null with ids")


async def concern(
    dependencies: ConsoleDependencies, filters: Filters, query: Document, foreign: Sequence[Document] = ()
) -> Response:
    """Answer what the letters of a selection concern, of which the query is about those that an act is possible for."""
    found = await concerned(dependencies.client, dependencies.prefix, query)
    named = [{"id": letter["_id"], "why": why_foreign(letter)} for letter in foreign]
    until = to_rfc3339(filters.until) if filters.until else None
    shown = {"letters": found.letters, "impact": found.impact.as_json(), "foreign": named, "until": until}
    return json_response(shown)
