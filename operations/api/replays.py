"""The routes about replays of dead letters, and what became of them."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from operations.api.routes import ACCEPTED, Accepted, Reason, ask_second_person, at, read_skip, staff_router, write_skip
from operations.api.selections import Selection
from operations.api.views import ConcernedView, concern
from operations.approvals.policy import REPLAY
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.dead_letters.careful import why_stopped
from operations.dead_letters.filters import replayable
from operations.dead_letters.letter_json import as_json
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.replays import DEFAULT_RATE
from operations.dead_letters.service import DeadLetterService
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import Body, View, conflict, json_response, not_found
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit


class NewReplay(Body):
    """Which letters to send again, how, and why."""

    letters: Selection
    reason: Reason
    rate: Annotated[float, Field(ge=0.1, le=10_000, description="letters per second")] = DEFAULT_RATE
    careful: bool = Field(
        True, description="send 1 letter, then 5, 25 and so on, each time once all that was sent is handled"
    )


class ReplayToStart(NewReplay):
    """A replay, or with `dryRun` the question what it is about."""

    dry_run: bool = Field(False, description="only answer what it is about")


class LeftOutView(View):
    """Letters that an edit left as they are, and why."""

    reason: str
    letters: int


class ReplayView(View):
    """A replay, and what became of its letters."""

    id: str
    at: datetime
    by: str
    why: str
    rate: float
    careful: bool
    status: str
    total: int
    published: int
    done_at: datetime | None
    stopped_because: str | None
    verdict: str = Field(description="what it has come to, in a word", examples=["handled", "failed again"])
    handled: int
    failed_again: int
    unknown: int = Field(description="sent, and not known yet to be handled or to have failed")
    left_out: list[LeftOutView] | None = Field(description="letters that a patch leaves as they are; null if no edit")


class ReplayPage(View):
    """A page of replays, and the number on all pages."""

    items: list[ReplayView]
    next_cursor: str | None
    total: int


def create_replays(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router, service = staff_router("dead letters"), DeadLetterService(dependencies.operations)

    @router.post(
        "/replays",
        status_code=202,
        response_model=ReplayView | Accepted,
        responses=ACCEPTED | {200: {"model": ConcernedView, "description": "With `dryRun`"}} | documented(409),
    )
    @requires(Permission.LETTERS_DECIDE)
    async def replay_dead_letters(request: Request, body: ReplayToStart) -> Response:
        """Send dead letters again to the inboxes in which they failed; the answer leads to the outcome.

        With `dryRun`, answer with 200 how many letters, orders, customers and how much money it is about, and do
        nothing.
        """
        filters = body.letters.filters(dependencies.clock())
        if body.dry_run:
            return await concern(dependencies, filters, replayable(filters), await service.foreign(filters))
        if dependencies.approval_policy.letters_need(REPLAY, filters.ids):
            parameters = {"filters": filters.as_document(), "rate": body.rate, "careful": body.careful}
            return await ask_second_person(
                request,
                dependencies,
                action=REPLAY,
                subject=filters.subject,
                why=body.reason,
                parameters=parameters,
            )
        replay_id = await service.start_replay(
            filters, by=actor(request), why=body.reason, rate=body.rate, careful=body.careful
        )
        return await started(service, replay_id)

    @router.get("/replays", response_model=ReplayPage)
    @requires(Permission.LETTERS_READ)
    async def list_replays(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Replays, the newest first."""
        skip = read_skip(cursor)
        found, total = await service.replays(limit, skip), await service.count_replays()
        outcomes = await service.outcomes(replay["_id"] for replay in found)
        items = [_shown(replay, outcomes[replay["_id"]]) for replay in found]
        following = write_skip(skip + len(found), total)
        return json_response({"items": items, "nextCursor": following, "total": total})

    @router.get("/replays/{replay_id}", response_model=ReplayView)
    @requires(Permission.LETTERS_READ)
    async def get_replay(replay_id: str) -> Response:
        """A replay: how much of it is sent, and what became of it."""
        return json_response(await _found(service, replay_id))

    @router.post("/replays/{replay_id}/stop", response_model=ReplayView, responses=documented(404, 409))
    @requires(Permission.LETTERS_DECIDE)
    async def stop_replay(request: Request, replay_id: str) -> Response:
        """Stop a replay; what it has sent stays sent."""
        await _found(service, replay_id)
        if not await service.cancel_replay(replay_id, by=actor(request)):
            raise conflict(f"Replay {replay_id} was over already")
        return json_response(await _found(service, replay_id))

    return router


async def started(service: DeadLetterService, replay_id: str) -> Response:
    """Answer with a replay that has begun."""
    return json_response(await _found(service, replay_id), HTTPStatus.ACCEPTED, at("replays", replay_id))


async def _found(service: DeadLetterService, replay_id: str) -> dict[str, Any]:
    replay = await service.replay(replay_id)
    if replay is None:
        raise not_found(f"Replay {replay_id}")
    return _shown(replay, await service.outcome(replay_id))


def _shown(replay: Document, outcome: ReplayOutcome) -> dict[str, Any]:
    names = ("_id", "at", "by", "why", "rate", "status", "total", "published", "doneAt")
    return {
        **{name.removeprefix("_"): as_json(replay[name]) for name in names},
        "careful": replay.get("careful", False),
        "stoppedBecause": why_stopped(replay),
        "verdict": str(outcome.verdict(replay)),
        **outcome.as_json(),
        "leftOut": replay.get("left"),
    }
