"""The pages about webhooks: endpoints, their deliveries with the latest attempts, and redelivery."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request, Response

from notification_service.delivery import Status
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import ActionFailed, OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.upstream import Services, Unavailable, attempt, path
from operations.reading.webhook_figures import read_figures
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import in_utc
from shared.http import not_found

ENDPOINTS = 20
DELIVERIES = 50
SERVICE = "notification"

_TIMES = ("createdAt", "updatedAt", "disabledAt", "failingSince", "deliveredAt", "nextAttemptAt", "at")

WebhookPath = Annotated[str, Path(min_length=1, max_length=100)]
CursorQuery = Annotated[str | None, Query(max_length=1000)]


def create_webhooks(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the pages, and those of the actions on them."""
    router = pages.router()
    _add_pages(router, dependencies, pages)
    _add_actions(router, dependencies, pages)
    return router


def _add_pages(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.get("/webhooks")
    @requires(Permission.WEBHOOKS_READ)
    async def webhooks(request: Request, cursor: CursorQuery = None) -> Response:
        found, more = await _page(dependencies.services, "/webhooks", ENDPOINTS, cursor)
        figures: Any = {}
        if not isinstance(found, Unavailable):
            figures = await _figures(dependencies, (endpoint["id"] for endpoint in found))
        return pages.show(request, "webhooks.html", found=found, more=more, cursor=cursor, figures=figures)

    @router.get("/webhooks/{webhook_id}")
    @requires(Permission.WEBHOOKS_READ)
    async def webhook(
        request: Request, webhook_id: WebhookPath, status: Status | None = None, cursor: CursorQuery = None
    ) -> Response:
        return await _show_webhook(request, dependencies, pages, webhook_id, status=status, cursor=cursor)

    @router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
    @requires(Permission.WEBHOOKS_READ)
    async def delivery(request: Request, webhook_id: WebhookPath, delivery_id: WebhookPath) -> Response:
        return await _show_delivery(request, dependencies, pages, webhook_id, delivery_id)


def _add_actions(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    @router.post("/webhooks/{webhook_id}/enable")
    @requires(Permission.WEBHOOKS_WRITE)
    async def enable(request: Request, webhook_id: WebhookPath, why: Annotated[Why, Form()]) -> Response:
        """Enable an endpoint, and log it."""
        action = OperatorAction(actor(request), why, "webhook.enable", webhook_id)
        address = path("webhooks", webhook_id)
        failed = await execute(
            dependencies, action, ServiceCall("PATCH", SERVICE, address, {"enabled": True}), done="enabled"
        )
        if failed is None:
            return redirect(address)
        return await _show_webhook(request, dependencies, pages, webhook_id, failed=failed, why=why)

    @router.post("/webhooks/{webhook_id}/redeliver")
    @requires(Permission.WEBHOOKS_WRITE)
    async def redeliver_failed(
        request: Request,
        webhook_id: WebhookPath,
        why: Annotated[Why, Form()],
        since: Annotated[str, Form(max_length=40)],
    ) -> Response:
        """Attempt all failed deliveries of an endpoint since a time again, and log it."""
        try:
            moment = _in_utc(since).isoformat()
        except ValueError:
            failed = ActionFailed("Not done", "the time must be like 2026-01-31T09:30", 422)
            return await _show_webhook(request, dependencies, pages, webhook_id, failed=failed, why=why, since=since)
        action = OperatorAction(actor(request), why, "webhook.redeliver-failed", webhook_id)
        address, body = path("webhooks", webhook_id, "redeliver"), {"since": moment}
        done = f"all failed since {moment} are attempted again"
        failed_action = await execute(dependencies, action, ServiceCall("POST", SERVICE, address, body), done=done)
        if failed_action is None:
            return redirect(path("webhooks", webhook_id))
        return await _show_webhook(request, dependencies, pages, webhook_id, failed=failed_action, why=why, since=since)

    @router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
    @requires(Permission.WEBHOOKS_WRITE)
    async def redeliver(
        request: Request, webhook_id: WebhookPath, delivery_id: WebhookPath, why: Annotated[Why, Form()]
    ) -> Response:
        """Attempt one delivery again, and log it."""
        action = OperatorAction(actor(request), why, "webhook.redeliver", f"{webhook_id}:{delivery_id}")
        address = path("webhooks", webhook_id, "deliveries", delivery_id)
        failed = await execute(
            dependencies, action, ServiceCall("POST", SERVICE, f"{address}/redeliver"), done="it is attempted again"
        )
        if failed is None:
            return redirect(address)
        return await _show_delivery(request, dependencies, pages, webhook_id, delivery_id, failed=failed, why=why)


async def _show_webhook(
    request: Request,
    dependencies: ConsoleDependencies,
    pages: Pages,
    webhook_id: str,
    *,
    status: Status | None = None,
    cursor: str | None = None,
    failed: ActionFailed | None = None,
    why: str = "",
    since: str = "",
) -> Response:
    address = path("webhooks", webhook_id)
    parameters = {"status": str(status)} if status else {}
    (deliveries, more), endpoint, figures = await asyncio.gather(
        _page(dependencies.services, f"{address}/deliveries", DELIVERIES, cursor, **parameters),
        dependencies.services.get(SERVICE, address),
        _figures(dependencies, [webhook_id]),
    )
    if not isinstance(endpoint, Unavailable) and not endpoint.ok:
        raise not_found(f"Webhook {webhook_id}")
    return pages.show(
        request,
        "webhook.html",
        failed.status if failed else HTTPStatus.OK,
        webhook_id=webhook_id,
        endpoint=endpoint if isinstance(endpoint, Unavailable) else _with_times(endpoint.body),
        figures=figures,
        deliveries=deliveries,
        more=more,
        cursor=cursor,
        status=status,
        statuses=list(Status),
        error=failed,
        why=why,
        since=since or f"{dependencies.clock() - timedelta(days=1):%Y-%m-%dT%H:%M}",
    )


async def _show_delivery(
    request: Request,
    dependencies: ConsoleDependencies,
    pages: Pages,
    webhook_id: str,
    delivery_id: str,
    *,
    failed: ActionFailed | None = None,
    why: str = "",
) -> Response:
    found = await dependencies.services.get(SERVICE, path("webhooks", webhook_id, "deliveries", delivery_id))
    if not isinstance(found, Unavailable) and not found.ok:
        raise not_found(f"Delivery {delivery_id} to webhook {webhook_id}")
    return pages.show(
        request,
        "webhook_delivery.html",
        failed.status if failed else HTTPStatus.OK,
        webhook_id=webhook_id,
        delivery_id=delivery_id,
        delivery=found if isinstance(found, Unavailable) else _with_times(found.body),
        error=failed,
        why=why,
    )


async def _page(
    services: Services, address: str, limit: int, cursor: str | None, **parameters: str
) -> tuple[list[dict[str, Any]] | Unavailable, str | None]:
    """Return a page of a list, and the cursor of the next one."""
    after = {"cursor": cursor} if cursor else {}
    found = await services.get(SERVICE, address, limit=limit, **parameters, **after)
    if isinstance(found, Unavailable):
        return found, None
    return [_with_times(item) for item in found.body.get("items", ())], found.body.get("nextCursor")


async def _figures(dependencies: ConsoleDependencies, webhook_ids: Iterable[str]) -> Any:
    asked = read_figures(dependencies.webhook_deliveries, webhook_ids, dependencies.clock())
    return await attempt(asked, "MongoDB")


def _with_times(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the service shows, with its times parsed."""
    times = {name: datetime.fromisoformat(item[name]) for name in _TIMES if item.get(name)}
    parsed = {**item, **times}
    if item.get("lastAttempt"):
        parsed["lastAttempt"] = _with_times(item["lastAttempt"])
    if "history" in item:
        parsed["history"] = [_with_times(each) for each in reversed(item["history"])]
    return parsed


def _in_utc(text: str) -> datetime:
    """Parse a time; one without a zone is in UTC, like all times of the console. Raises ValueError."""
    at = datetime.fromisoformat(text.strip())
    return in_utc(at) if at.tzinfo else at.replace(tzinfo=UTC)
