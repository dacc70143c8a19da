"""The pages about dead letters: groups, letters, replays, and the actions on them."""

import asyncio
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response

from operations.console.bodies import MOST_SHOWN, view, view_of
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Note, Why, actor, redirect
from operations.console.impacts import ReplayImpactCache
from operations.console.letter_edit import create_letter_edit
from operations.console.letter_groups import create_groups, newest_replays
from operations.console.letters_edit import create_letters_edit
from operations.console.letters_many import create_letters_many
from operations.console.letters_selection import offered
from operations.console.lists import SPANS, address, page_links, read_period
from operations.console.pages import SECURITY, Pages
from operations.console.saved_views import views_of
from operations.console.upstream import Unavailable, attempt, path
from operations.dead_letters.careful import why_stopped
from operations.dead_letters.filters import Filters
from operations.dead_letters.groups import Group
from operations.dead_letters.letter import service_of, why_foreign, why_not_replayable
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.records import LetterOrder
from operations.dead_letters.replays import GOING_ON, UNFINISHED, NotPossibleError
from operations.dead_letters.service import DeadLetterService, Decided
from operations.dead_letters.status import DEAD, GROUP_STATUSES, OUTCOMES, PENDING, STATUSES
from operations.impact.impact import Impact
from operations.impact.reading import ImpactReader
from operations.order_actions.search import MOST_COUNTED
from shared.access.middleware import caller_of, requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import ProblemError, add_routes, conflict, invalid, not_found
from shared.paging import wrong_cursor
from shared.topology import INBOXES

PAGE = 50
PREVIEWS_LISTED = 100

CLOSELY_WATCHED = timedelta(minutes=10)
"""The time for which the page of an ended replay refreshes often: all retry levels take three minutes."""

Short = Annotated[str, Query(max_length=300)]


def create_dead_letters(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes about dead letters."""
    router, service = pages.router(), DeadLetterService(dependencies.operations)
    previews = ReplayPreviews(dependencies.client, dependencies.prefix)
    add_routes(router, create_groups(dependencies, pages))
    _add_group(router, dependencies, pages, service)
    _add_previews(router, pages, service, previews)
    _add_group_actions(router, service)
    _add_list(router, dependencies, pages, service)
    _add_letter(router, pages, service, previews)
    _add_letter_actions(router, service)
    add_routes(router, create_letter_edit(dependencies, pages))
    add_routes(router, create_letters_many(dependencies, pages, filters_of))
    add_routes(router, create_letters_edit(dependencies, pages, filters_of))
    _add_replays(router, dependencies, pages, service)
    return router


# --- Groups. ---


def _add_group(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, service: DeadLetterService) -> None:
    impacts = ImpactReader(dependencies.client, dependencies.prefix)

    @router.get("/dead-letters/groups/{fingerprint}")
    @requires(Permission.LETTERS_READ)
    async def group(request: Request, fingerprint: str, cursor: str | None = None) -> Response:
        found = await _group(service, fingerprint)
        impact = await attempt(impacts.of_group(fingerprint, found.open), "MongoDB")
        page = await _page(service, Filters(group=fingerprint, status=STATUSES), cursor)
        newest = await service.letter_for_page(page.items[0]["_id"]) if page.items else None
        newest = _visible(request, newest) if newest else None
        foreign = len(await service.foreign(Filters(group=fingerprint)))
        more = f"{request.url.path}?{urlencode({'cursor': page.next_cursor})}" if page.next_cursor else None
        return pages.show(
            request,
            "group.html",
            group=found,
            impact=impact,
            group_letters=await service.count(Filters(group=fingerprint, status=STATUSES), MOST_COUNTED),
            foreign=foreign,
            newest=newest,
            body=view_of(newest) if newest else None,
            items=[_visible(request, letter) for letter in page.items],
            more=more,
            cursor=cursor,
            letters_acts=offered(Filters(group=fingerprint)),
            statuses=GROUP_STATUSES,
        )


def _add_group_actions(router: APIRouter, service: DeadLetterService) -> None:
    def back(fingerprint: str) -> Response:
        return redirect(path("dead-letters", "groups", fingerprint))

    @router.post("/dead-letters/groups/{fingerprint}/status")
    @requires(Permission.LETTERS_DECIDE)
    async def set_status(request: Request, fingerprint: str, status: Annotated[str, Form()]) -> Response:
        """Set the status of the group."""
        operator = actor(request)
        if status not in GROUP_STATUSES:
            raise invalid(("status", f"is {status!r}, must be one of {', '.join(GROUP_STATUSES)}"))
        await _group(service, fingerprint)
        await service.set_group_status(fingerprint, status, by=operator)
        return back(fingerprint)

    @router.post("/dead-letters/groups/{fingerprint}/notes")
    @requires(Permission.LETTERS_DECIDE)
    async def add_note(
        request: Request,
        fingerprint: str,
        text: Annotated[Note, Form()],
    ) -> Response:
        """Add a note to the group."""
        operator = actor(request)
        await _group(service, fingerprint)
        try:
            await service.add_note(fingerprint, text, by=operator)
        except NotPossibleError as error:
            raise conflict(str(error)) from None
        return back(fingerprint)


# --- The list, and one letter. ---


def _add_list(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, service: DeadLetterService) -> None:
    @router.get("/dead-letters/list")
    @requires(Permission.LETTERS_READ)
    async def list_letters(
        request: Request,
        service_name: Annotated[str, Query(alias="service", max_length=300)] = "",
        error: Short = "",
        routing_key: Annotated[str, Query(alias="type", max_length=300)] = "",
        status: Short = "",
        order: Short = "",
        text: Short = "",
        group: Short = "",
        inbox: Short = "",
        product: Short = "",
        span: Short = "",
        since: Short = "",
        until: Short = "",
        sort: LetterOrder = LetterOrder.NEWEST,
        replay: Short = "",
        outcome: Short = "",
        cursor: str | None = None,
    ) -> Response:
        asked = {
            "service": service_name.strip(),
            "error": error.strip(),
            "type": routing_key.strip(),
            "status": status.strip(),
            "order": order.strip(),
            "text": text.strip(),
            "group": group.strip(),
            "inbox": inbox.strip(),
            "product": product.strip(),
            "span": span,
            "since": since.strip(),
            "until": until.strip(),
            "sort": "" if sort is LetterOrder.NEWEST else str(sort),
            "replay": replay.strip(),
            "outcome": outcome,
        }
        filters = filters_of(asked, dependencies.clock())
        found, total = await asyncio.gather(
            attempt(_page(service, filters, cursor, sort), "MongoDB"),
            attempt(service.count(filters, MOST_COUNTED), "MongoDB"),
        )
        more = None
        if not isinstance(found, Unavailable) and found.next_cursor:
            more = address(request.url.path, asked, cursor=found.next_cursor)
        return pages.show(
            request,
            "letters.html",
            asked=asked,
            found=found,
            total=total,
            more=more,
            first=address(request.url.path, asked) if cursor else None,
            letters_acts=offered(filters),
            statuses=STATUSES,
            outcomes=OUTCOMES,
            spans=SPANS,
            sortings=list(LetterOrder),
            services=sorted({service_of(inbox) for inbox in INBOXES}),
            inboxes=list(INBOXES),
            views=await views_of(request, dependencies, request.url.path),
        )


def _add_letter(router: APIRouter, pages: Pages, service: DeadLetterService, previews: ReplayPreviews) -> None:
    @router.get("/dead-letters/letters/{letter_id}")
    @requires(Permission.LETTERS_READ)
    async def letter(request: Request, letter_id: str) -> Response:
        stored = await _letter(service, letter_id)
        found = _visible(request, stored)
        preview = await attempt(previews.of_letter(stored), "MongoDB") if is_replayable(stored) else None
        return pages.show(
            request,
            "letter.html",
            letter=found,
            foreign=why_foreign(found),
            preview=preview,
            body=view_of(found),
            edited=[view(edit["body"]) for edit in found.get("edits") or ()],
            most=MOST_SHOWN,
        )

    @router.get("/dead-letters/letters/{letter_id}/body")
    @requires(Permission.LETTERS_EDIT)
    async def body(letter_id: str) -> Response:
        """Download the whole original body."""
        found = await service.letter(letter_id)
        if found is None:
            raise _no_letter(letter_id)
        headers = {**SECURITY, "Content-Disposition": 'attachment; filename="body"'}
        return Response(found["body"], headers=headers, media_type="application/octet-stream")


def _add_letter_actions(router: APIRouter, service: DeadLetterService) -> None:
    @router.post("/dead-letters/letters/{letter_id}/replay")
    @requires(Permission.LETTERS_DECIDE)
    async def replay(request: Request, letter_id: str, why: Annotated[Why, Form()]) -> Response:
        """Replay one letter unchanged."""
        operator = actor(request)
        replay_id = await _start(service, Filters(ids=(letter_id,)), operator, why)
        return redirect(path("dead-letters", "replays", replay_id))

    @router.post("/dead-letters/letters/{letter_id}/discard")
    @requires(Permission.LETTERS_DECIDE)
    async def discard(request: Request, letter_id: str, why: Annotated[Why, Form()]) -> Response:
        """Discard one letter."""
        operator = actor(request)
        await _discard(service, Filters(ids=(letter_id,)), operator, why)
        return redirect(path("dead-letters", "letters", letter_id))


# --- Previews. ---


def _add_previews(router: APIRouter, pages: Pages, service: DeadLetterService, previews: ReplayPreviews) -> None:
    @router.get("/dead-letters/groups/{fingerprint}/preview")
    @requires(Permission.LETTERS_READ)
    async def preview_group(request: Request, fingerprint: str) -> Response:
        """Show what a replay of the group would do, counted and letter by letter."""
        group = await _group(service, fingerprint)
        found = await previews.of_selection(Filters(group=fingerprint, status=("dead",)))
        return pages.show(request, "preview.html", group=group, found=found, listed=found.letters[:PREVIEWS_LISTED])


# --- Replays. ---


def _add_replays(
    router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, service: DeadLetterService
) -> None:
    impacts = ReplayImpactCache(ImpactReader(dependencies.client, dependencies.prefix))

    async def show(request: Request, replay_id: str, template: str) -> Response:
        replay = await service.replay(replay_id)
        if replay is None:
            raise not_found(f"Replay {replay_id}")
        outcome = await service.outcome(replay_id)
        caller = caller_of(request.scope)
        sees_orders = caller is not None and caller.may(Permission.ORDERS_READ)
        shows = sees_orders and is_over(replay, outcome)
        impact = await attempt(impacts.of_replay(replay_id), "MongoDB") if shows else None
        return pages.show(
            request,
            template,
            replay=replay,
            outcome=outcome,
            verdict=outcome.verdict(replay),
            impact=impact,
            stopped_because=why_stopped(replay),
            may_cancel=replay["status"] in GOING_ON,
            refresh_seconds=refresh_seconds(replay, outcome, impact, dependencies.clock()),
        )

    @router.get("/dead-letters/replays")
    @requires(Permission.LETTERS_READ)
    async def replays(request: Request, page: Annotated[int, Query(ge=1, le=10_000)] = 1) -> Response:
        found, total = await asyncio.gather(
            attempt(newest_replays(service, PAGE, (page - 1) * PAGE), "MongoDB"),
            attempt(service.count_replays(), "MongoDB"),
        )
        links = None
        if not isinstance(found, Unavailable) and not isinstance(total, Unavailable):
            links = page_links(request.url.path, {}, page=page, size=PAGE, shown=len(found), total=total)
        return pages.show(request, "replays.html", replays=found, links=links)

    @router.get("/dead-letters/replays/{replay_id}")
    @requires(Permission.LETTERS_READ)
    async def replay(request: Request, replay_id: str) -> Response:
        return await show(request, replay_id, "replay.html")

    @router.get("/dead-letters/replays/{replay_id}/progress")
    @requires(Permission.LETTERS_READ)
    async def live(request: Request, replay_id: str) -> Response:
        return await show(request, replay_id, "replay_live.html")

    @router.post("/dead-letters/replays/{replay_id}/cancel")
    @requires(Permission.LETTERS_DECIDE)
    async def cancel(request: Request, replay_id: str) -> Response:
        """Stop the replay."""
        operator = actor(request)
        await service.cancel_replay(replay_id, by=operator)
        return redirect(path("dead-letters", "replays", replay_id))


# --- Helpers. ---


def is_over(replay: Document, outcome: ReplayOutcome) -> bool:
    """Return whether a replay sent anything, sends no more, and all of its outcome is known."""
    return replay["status"] not in UNFINISHED and not outcome.unknown and bool(outcome.handled or outcome.failed)


def refresh_seconds(
    replay: Document, outcome: ReplayOutcome, impact: Impact | Unavailable | None, now: datetime
) -> int | None:
    """Return how often the page of a replay refreshes itself.

    None once all of its outcome is known and its orders are settled, or have had the time for it.
    """
    if replay["status"] in UNFINISHED:
        return 2
    closely = now - replay["doneAt"] < CLOSELY_WATCHED
    if outcome.unknown:
        return 2 if closely else 30
    open_ = isinstance(impact, Unavailable) or (impact is not None and bool(impact.unsettled.orders))
    return 2 if closely and open_ else None


def filters_of(asked: dict[str, str], now: datetime) -> Filters:
    """Return the filters of the search form; empty fields match everything.

    Raises the 422 problem for a wrong time, status or outcome, and for an outcome without its replay.
    """
    for name, allowed in (("outcome", OUTCOMES), ("status", STATUSES)):
        if asked[name] and asked[name] not in allowed:
            raise invalid((name, f"is {asked[name]!r}, must be one of {', '.join(allowed)}"))
    if asked["outcome"] and not asked["replay"]:
        raise invalid(("outcome", "is that of a replay: name the replay too"))
    period = read_period(asked["span"], asked["since"], asked["until"], now)
    return Filters(
        service=asked["service"] or None,
        queue=asked["inbox"] or None,
        group=asked["group"] or None,
        error=asked["error"] or None,
        type=asked["type"] or None,
        status=(asked["status"],) if asked["status"] else (),
        since=period.since,
        until=period.until,
        order_id=asked["order"] or None,
        text=f"{asked['text']} {asked['product']}".strip() or None,
        replay=asked["replay"] or None,
        outcome=asked["outcome"] or None,
    )


def is_replayable(letter: Document) -> bool:
    """Return whether the page of a letter offers to replay it."""
    return letter["status"] in (DEAD, PENDING) and why_not_replayable(letter) is None


async def _page(
    service: DeadLetterService, filters: Filters, cursor: str | None, order: LetterOrder = LetterOrder.NEWEST
) -> Any:
    try:
        return await service.page(filters, limit=PAGE, cursor=cursor, order=order)
    except ValueError:
        raise wrong_cursor() from None


async def _group(service: DeadLetterService, fingerprint: str) -> Group:
    found = await service.group(fingerprint)
    if found is None:
        raise not_found(f"Group {fingerprint}")
    return found


async def _letter(service: DeadLetterService, letter_id: str) -> Document:
    found = await service.letter_for_page(letter_id)
    if found is None:
        raise _no_letter(letter_id)
    return found


def _no_letter(letter_id: str) -> ProblemError:
    return not_found(f"Dead letter {letter_id}")


async def _start(service: DeadLetterService, filters: Filters, operator: str, why: str) -> str:
    try:
        return await service.start_replay(filters, by=operator, why=why)
    except NotPossibleError as error:
        raise conflict(str(error)) from None


async def _discard(service: DeadLetterService, filters: Filters, operator: str, why: str) -> Decided:
    try:
        return await service.discard(filters, by=operator, why=why)
    except NotPossibleError as error:
        raise conflict(str(error)) from None


def _visible(request: Request, letter: Document) -> Document:
    """Return the letter as the caller may see it: only who may edit letters sees tokens and personal fields."""
    caller = caller_of(request.scope)
    return letter if caller is not None and caller.may(Permission.LETTERS_EDIT) else mask_letter(letter)
