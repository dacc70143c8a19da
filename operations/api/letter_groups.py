"""The routes about dead letters by cause."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field

from operations.api.routes import Words, read_skip, staff_router, write_skip
from operations.api.views import ImpactView
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Note, actor
from operations.console.impacts import ImpactCache
from operations.dead_letters.filters import Filters
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.groups import Group
from operations.dead_letters.letter_json import as_json
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.service import DeadLetterService
from operations.impact.impact import Impact
from operations.impact.ranking import Sorting, rank_groups
from operations.impact.reading import ImpactReader
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import Body, View, json_response, not_found
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit
from shared.validation import Moment

GroupStatus = Literal["new", "acknowledged", "resolved"]


class GroupView(View):
    """Letters of one cause; `open` counts those that may still need attention.

    It has more fields than these, such as the notes, the chart and the last replay.
    """

    model_config = ConfigDict(extra="allow")

    fingerprint: str
    status: str
    service: str
    queue: str
    routing_key: str
    error_type: str
    message: str
    open: int
    total: int
    first_failed_at: datetime
    last_failed_at: datetime
    impact: ImpactView


class GroupPage(View):
    """A page of groups, and the number of groups on all pages."""

    items: list[GroupView]
    next_cursor: str | None
    total: int
    all_ranked: bool = Field(description="false if there are too many groups to compare the harm of all")
    all_compared: bool
    all_counted: bool = Field(description="false if a group has too many letters to look at all of them")


class PreviewCount(View):
    """How many letters a replay would do this with."""

    effect: str
    text: str
    letters: int


class PreviewItem(View):
    """What a replay would do with one letter."""

    id: str
    effect: str
    text: str


class PreviewOfSelection(View):
    """What a replay of letters would do, for at most 1,000 of them."""

    total: int
    previewed: int
    counts: list[PreviewCount]
    items: list[PreviewItem]


class GroupChange(Body):
    """What to change of a group."""

    status: GroupStatus


class NewNote(Body):
    """A note on a group."""

    text: Note


def create_letter_groups(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router, service = staff_router("dead letters"), DeadLetterService(dependencies.operations)
    previews = ReplayPreviews(dependencies.client, dependencies.prefix)
    impacts = ImpactReader(dependencies.client, dependencies.prefix)
    cache = ImpactCache(impacts)

    @router.get("/dead-letter-groups", response_model=GroupPage)
    @requires(Permission.LETTERS_READ)
    async def list_groups(
        status: GroupStatus | None = None,
        open_only: Annotated[bool, Query(alias="open", description="Only groups with open letters")] = True,
        service_name: Annotated[str | None, Query(alias="service", max_length=300)] = None,
        inbox: Words = None,
        cause: Annotated[str | None, Query(max_length=300, description="A part of the error's type or message")] = None,
        product: Annotated[str | None, Query(alias="productId", max_length=300)] = None,
        since: Moment | None = None,
        until: Moment | None = None,
        sort: Sorting = Sorting.HARM,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Groups of letters that failed in the same way, with what they mean for customers, the most harmful first."""
        skip = read_skip(cursor)
        filters = GroupFilters(
            status=status,
            service=service_name,
            queue=inbox,
            cause=cause,
            product=product,
            since=since,
            until=until,
            open_only=open_only,
        )
        page = await rank_groups(service, cache, filters, by=sort, limit=limit, skip=skip)
        following = write_skip(skip + len(page.items), page.total)
        items = [_shown(group, impact) for group, impact in page.items]
        ranked = {"allRanked": page.all_ranked, "allCompared": page.all_compared, "allCounted": page.all_counted}
        return json_response({"items": items, "nextCursor": following, "total": page.total, **ranked})

    @router.get("/dead-letter-groups/{fingerprint}", response_model=GroupView)
    @requires(Permission.LETTERS_READ)
    async def get_group(fingerprint: str) -> Response:
        """A group: its cause, its letters in figures, what it means for customers, its notes and its last replay."""
        return await shown(fingerprint)

    @router.get("/dead-letter-groups/{fingerprint}/preview", response_model=PreviewOfSelection)
    @requires(Permission.LETTERS_READ)
    async def preview_replay_of_group(fingerprint: str) -> Response:
        """What a replay of the group would do, counted and letter by letter."""
        await found(fingerprint)
        preview = await previews.of_selection(Filters(group=fingerprint, status=("dead",)))
        return json_response(preview.as_json())

    @router.patch("/dead-letter-groups/{fingerprint}", response_model=GroupView, responses=documented(404))
    @requires(Permission.LETTERS_DECIDE)
    async def change_group(request: Request, fingerprint: str, body: GroupChange) -> Response:
        """Set the status of a group."""
        await found(fingerprint)
        await service.set_group_status(fingerprint, body.status, by=actor(request))
        return await shown(fingerprint)

    @router.post(
        "/dead-letter-groups/{fingerprint}/notes",
        status_code=HTTPStatus.CREATED,
        response_model=GroupView,
        responses=documented(404, 409),
    )
    @requires(Permission.LETTERS_DECIDE)
    async def add_note_to_group(request: Request, fingerprint: str, body: NewNote) -> Response:
        """Add a note to a group."""
        await found(fingerprint)
        await service.add_note(fingerprint, body.text, by=actor(request))
        return await shown(fingerprint, HTTPStatus.CREATED)

    async def found(fingerprint: str) -> Group:
        group = await service.group(fingerprint)
        if group is None:
            raise not_found(f"Group {fingerprint}")
        return group

    async def shown(fingerprint: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
        group = await found(fingerprint)
        return json_response(_shown(group, await impacts.of_group(fingerprint, group.open)), status)

    return router


def _shown(group: Group, impact: Impact) -> dict[str, Any]:
    return {**as_json(group.as_json()), "impact": impact.as_json()}
