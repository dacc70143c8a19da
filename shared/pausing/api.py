"""The routes that pause and resume the consumption of a service's inbox."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field, StringConstraints

from shared import problems
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.clock import Clock, to_rfc3339, utc_now
from shared.http import Body, View, conflict, json_response, new_router, shown_as
from shared.openapi import documented
from shared.pausing.pause import Pause, Pauses, running
from shared.pausing.records import PauseRecords
from shared.services import Service

LONGEST_SECONDS = 30 * 86_400
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class NewPause(Body):
    """Why, and for how long: without `seconds`, until it is resumed."""

    model_config = shown_as({"reason": "the card gateway answers with errors", "seconds": 1800})

    reason: Reason
    seconds: Annotated[int, Field(ge=1, le=LONGEST_SECONDS)] | None = None


class Resumption(Body):
    """Why it is resumed."""

    model_config = shown_as({"reason": "the card gateway works again"})

    reason: Reason


class ShownPause(View):
    """A pause of the consumption."""

    since: datetime
    until: datetime | None
    ended_at: datetime | None
    by: str | None
    reason: str | None


class ConsumerState(View):
    """Whether the messages of an inbox are consumed."""

    model_config = shown_as(
        {
            "service": "payment",
            "inbox": "payment.inbox",
            "paused": True,
            "pause": {
                "since": "2026-01-31T09:30:00.000Z",
                "until": "2026-01-31T10:00:00.000Z",
                "endedAt": None,
                "by": "key:3f9c0d21",
                "reason": "the card gateway answers with errors",
            },
        }
    )

    service: str
    inbox: str
    paused: bool
    pause: ShownPause | None
    """The pause that is running, else the last one."""


def create_pause_routes(service: Service, records: PauseRecords, clock: Clock = utc_now) -> APIRouter:
    """Return the routes of a service whose consumption can be paused."""
    router = new_router("consumer")

    @router.get("/consumer", response_model=ConsumerState)
    @requires(Permission.LETTERS_READ)
    async def get_consumer() -> Response:
        """Whether the service consumes its inbox, and who paused it, why and until when."""
        record = await records.find(service.name)
        return _shown(service, record.pauses if record else (), clock())

    @router.post("/consumer/pause", response_model=ConsumerState)
    @requires(Permission.LETTERS_DECIDE)
    async def pause_consumer(new: NewPause, caller: Caller) -> Response:
        """Stop consuming the inbox, in all processes within two seconds; its messages wait.

        A pause that is running gets the new reason and end. Orders that wait for the service are not cancelled
        meanwhile.
        """
        now = clock()
        until = now + timedelta(seconds=new.seconds) if new.seconds is not None else None
        pauses = await records.begin(service.name, now, by=caller.id, reason=new.reason, until=until)
        return _shown(service, pauses, now)

    @router.post("/consumer/resume", response_model=ConsumerState, responses=documented(problems.CONFLICT))
    @requires(Permission.LETTERS_DECIDE)
    async def resume_consumer(_why: Resumption) -> Response:
        """Consume the inbox again; 409 if it is not paused."""
        now = clock()
        pauses = await records.end(service.name, now)
        if pauses is None:
            raise conflict(f"The consumption of {service.inbox} is not paused")
        return _shown(service, pauses, now)

    return router


def _shown(service: Service, pauses: Pauses, now: datetime) -> Response:
    shown = {
        "service": service.name,
        "inbox": service.inbox,
        "paused": running(pauses, now) is not None,
        "pause": _pause(pauses[-1]) if pauses else None,
    }
    return json_response(shown)


def _pause(pause: Pause) -> dict[str, str | None]:
    return {
        "since": to_rfc3339(pause.since),
        "until": to_rfc3339(pause.until) if pause.until else None,
        "endedAt": to_rfc3339(pause.ended_at) if pause.ended_at else None,
        "by": pause.by,
        "reason": pause.reason,
    }
