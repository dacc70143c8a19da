"""The routes about the state of the stack: what is away, and the figures of the overview."""

import asyncio
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from operations.api.routes import staff_router
from operations.api.views import ImpactView
from operations.console.dependencies import ConsoleDependencies
from operations.console.figures import read_open_orders, read_recent_orders
from operations.console.outages import Outage, OutageWatch, PausedInbox
from operations.console.upstream import Unavailable, attempt
from operations.dead_letters.service import DeadLetterService
from operations.reading.broker import count_messages
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.http import View, json_response


class OutageView(View):
    """A server or service that cannot be used."""

    name: str
    state: str = Field(examples=["cannot be used"])
    since: datetime
    why: str
    meaning: str = Field(description="what does not work because of it")
    runbook: str = Field(description="the name of a page in docs/runbooks")
    waiting: ImpactView | None = Field(description="the orders that wait for it, where that is known")


class PausedView(View):
    """An inbox that an operator has paused; `GET /consumer` of its service says who and why."""

    inbox: str
    since: datetime
    until: datetime | None
    meaning: str


class Outages(View):
    """What is away, and what is paused."""

    items: list[OutageView]
    paused: list[PausedView]


class RecentView(View):
    """The newest orders, at most 2,000 of the last hour; shares and times are null without orders."""

    orders: int
    per_second: float = Field(description="over the last minute")
    succeeded: float | None = Field(description="the share of decided orders")
    failed: float | None
    goods_p50: float | None = Field(description="seconds from the order to its confirmation, of goods")
    goods_p95: float | None
    servers_p50: float | None = Field(description="seconds from the order to the server")
    servers_p95: float | None


class UnsettledView(View):
    """Orders that are not settled."""

    in_flight: int
    undecided: int = Field(description="FAILED, and waiting for somebody to retry or refund them")
    by_status: dict[str, int]


class Overview(View):
    """The figures of the overview; a part that could not be read is null, and `unavailable` says why."""

    recent: RecentView | None
    unsettled: UnsettledView | None
    queues: dict[str, int | None] | None = Field(description="messages by queue; null for a queue that does not exist")
    dead_letters: dict[str, int] | None = Field(description="letters by status")
    unavailable: dict[str, str]


def create_state(dependencies: ConsoleDependencies, watch: OutageWatch) -> APIRouter:
    """Return the routes."""
    router, letters = staff_router("state"), DeadLetterService(dependencies.operations)

    @router.get("/outages", response_model=Outages)
    @requires(Permission.SELF_READ)
    async def list_outages() -> Response:
        """What is away, since when, and what that means."""
        await watch.refresh()
        paused = [_paused(pause) for pause in watch.pauses]
        return json_response({"items": [_outage(outage) for outage in watch.outages], "paused": paused})

    @router.get("/overview", response_model=Overview)
    @requires(Permission.SELF_READ)
    async def get_overview() -> Response:
        """The newest orders, those that are not settled, the queues and the dead letters, in figures."""
        recent, unsettled, queues, counts = await asyncio.gather(
            attempt(read_recent_orders(dependencies.orders, dependencies.clock()), "MongoDB"),
            attempt(read_open_orders(dependencies.orders), "MongoDB"),
            attempt(count_messages(dependencies.amqp_url), "RabbitMQ"),
            attempt(letters.counts(), "MongoDB"),
        )
        shown = Overview(
            recent=None
            if isinstance(recent, Unavailable)
            else RecentView(
                orders=recent.orders,
                per_second=recent.per_second,
                succeeded=recent.succeeded,
                failed=recent.failed,
                goods_p50=recent.goods.p50,
                goods_p95=recent.goods.p95,
                servers_p50=recent.servers.p50,
                servers_p95=recent.servers.p95,
            ),
            unsettled=None
            if isinstance(unsettled, Unavailable)
            else UnsettledView(
                in_flight=unsettled.in_flight, undecided=unsettled.undecided, by_status=dict(unsettled.by_status)
            ),
            queues=None if isinstance(queues, Unavailable) else queues,
            dead_letters=None if isinstance(counts, Unavailable) else counts,
            unavailable={
                name: part.why
                for name, part in {
                    "recent": recent,
                    "unsettled": unsettled,
                    "queues": queues,
                    "deadLetters": counts,
                }.items()
                if isinstance(part, Unavailable)
            },
        )
        return json_response(shown.model_dump())

    return router


def _outage(outage: Outage) -> dict[str, Any]:
    return {
        "name": outage.name,
        "state": outage.state,
        "since": to_rfc3339(outage.since),
        "why": outage.why,
        "meaning": outage.meaning,
        "runbook": outage.runbook,
        "waiting": outage.waiting.as_json() if outage.waiting else None,
    }


def _paused(pause: PausedInbox) -> dict[str, Any]:
    return {
        "inbox": pause.inbox,
        "since": to_rfc3339(pause.since),
        "until": to_rfc3339(pause.until) if pause.until else None,
        "meaning": pause.meaning,
    }
