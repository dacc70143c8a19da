"""HTTP routes of the notification service: endpoints of webhooks, and the deliveries to them."""

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from notification_service.deletion import Deletion
from notification_service.deliveries import Deliveries
from notification_service.delivery import Delivery, Status
from notification_service.endpoint import BOTH_SECRETS_FOR, MAX_URL, Endpoint, Secret, check_url, with_new_secret
from notification_service.endpoints import Endpoints
from notification_service.events import check_pattern, trial_event
from notification_service.handlers import delivery_of
from notification_service.signing_secrets import SecretVault, new_secret
from notification_service.views import (
    DeliveryDetailView,
    DeliveryPage,
    DeliveryView,
    EndpointPage,
    EndpointView,
    EndpointWithSecretView,
    RedeliveredView,
    show_delivery,
    show_delivery_in_detail,
    show_endpoint,
)
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal, Visible
from shared.clock import Clock, in_utc
from shared.contracts.base import Name, Text
from shared.cursors import Key, time_key
from shared.http import Body, ProblemError, conflict, invalid, json_response, located, new_router, not_found, shown_as
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_id, after_time, page_response
from shared.validation import refuse_number

MAX_PATTERNS = 20

WebhookPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The endpoint's `id`")]
DeliveryPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The delivery's `id`")]
Patterns = Annotated[
    list[Annotated[str, AfterValidator(check_pattern)]],
    Field(min_length=1, max_length=MAX_PATTERNS, examples=[["order.*"]]),
    AfterValidator(lambda patterns: list(dict.fromkeys(patterns))),
]
Url = Annotated[str, Field(min_length=1, max_length=MAX_URL, examples=["https://shop.example/webhooks"])]


class NewEndpoint(Body):
    """Where to send which events; with `userId`, only those of one person's orders."""

    url: Url
    events: Patterns
    user_id: Name | None = None
    description: Text | None = None


class EndpointChanges(Body):
    """What to change of an endpoint."""

    model_config = shown_as({"events": ["order.completed", "order.cancelled"], "enabled": True})

    url: Url | None = None
    events: Patterns | None = None
    description: Text | None = None
    enabled: bool | None = None


class FailedSince(Body):
    """Which failed deliveries to attempt again: those of events recorded since this time."""

    # Not `Moment` with a bound: behind its validators, the bound would be explained in terms of Python.
    since: Annotated[
        AwareDatetime,
        Field(strict=False, ge=datetime(2000, 1, 1, tzinfo=UTC)),
        BeforeValidator(refuse_number),
        AfterValidator(in_utc),
    ]


class ApiDependencies(NamedTuple):
    """The dependencies of the routes; without a vault no secret can be stored.

    `gets_events` is whether webhooks are on: else no event reaches this service.
    """

    endpoints: Endpoints
    deliveries: Deliveries
    deletion: Deletion
    vault: SecretVault | None
    clock: Clock
    on_due: Callable[[Iterable[str]], None]
    allow_private: bool
    most_per_owner: int
    gets_events: bool


def create_router(dependencies: ApiDependencies) -> APIRouter:
    """Build the routes."""
    router = new_router("webhooks")
    _add_endpoints(router, dependencies)
    _add_secrets(router, dependencies)
    _add_deliveries(router, dependencies)
    _add_redelivery(router, dependencies)
    return router


def _add_endpoints(router: APIRouter, api: ApiDependencies) -> None:
    @router.post(
        "/webhooks", status_code=HTTPStatus.CREATED, response_model=EndpointWithSecretView, responses=documented(409)
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def register_webhook(body: NewEndpoint, caller: Caller) -> Response:
        """Register an endpoint. The answer has the secret to verify signatures with: it is shown only this once."""
        _require_events(api)
        url = _checked(body.url, api)
        endpoint_id, secret, now = f"wh_{uuid.uuid4().hex}", new_secret(), api.clock()
        endpoint = Endpoint(
            id=endpoint_id,
            url=url,
            events=tuple(body.events),
            secrets=(Secret(_vault(api).seal(endpoint_id, secret), now),),
            created_at=now,
            updated_at=now,
            owner_id=caller.owner,
            user_id=body.user_id,
            description=body.description,
            for_staff=caller.reaches_all(Permission.WEBHOOKS_WRITE),
        )
        if not await api.endpoints.insert(endpoint, api.most_per_owner):
            raise conflict(f"{caller.owner or 'This system'} has {api.most_per_owner} webhooks: delete one first")
        return json_response(show_endpoint(endpoint, secret), HTTPStatus.CREATED, located("webhooks", endpoint_id))

    @router.get("/webhooks", response_model=EndpointPage)
    @requires(Permission.WEBHOOKS_READ)
    async def list_webhooks(
        limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None, *, caller: Caller
    ) -> Response:
        """Endpoints, in the order of their ids."""
        visible = caller.visible(Permission.WEBHOOKS_READ)
        page = await api.endpoints.page(visible, after=after_id(cursor), limit=limit)
        return page_response(page, show_endpoint, key=lambda endpoint: [endpoint.id], limit=limit)

    @router.get("/webhooks/{webhook_id}", response_model=EndpointView)
    @requires(Permission.WEBHOOKS_READ)
    async def get_webhook(webhook_id: WebhookPath, caller: Caller) -> Response:
        """One endpoint."""
        return json_response(show_endpoint(await _find(api, webhook_id, _readable(caller))))

    @router.patch("/webhooks/{webhook_id}", response_model=EndpointView, responses=documented(409))
    @requires(Permission.WEBHOOKS_WRITE)
    async def change_webhook(webhook_id: WebhookPath, body: EndpointChanges, caller: Caller) -> Response:
        """Change an endpoint, or disable or enable it. While it is disabled, its deliveries fail without an attempt."""
        changes = {name: value for name, value in body.model_dump().items() if value is not None}
        if not changes:
            raise invalid(("body", "must have a field to change: url, events, description or enabled"))
        _check_changes(body, api)
        endpoint = await api.endpoints.change(webhook_id, changes, _writable(caller), api.clock())
        return json_response(show_endpoint(_found(webhook_id, endpoint)))

    @router.delete("/webhooks/{webhook_id}", status_code=HTTPStatus.NO_CONTENT)
    @requires(Permission.WEBHOOKS_WRITE)
    async def delete_webhook(webhook_id: WebhookPath, caller: Caller) -> Response:
        """Delete an endpoint and the deliveries to it. The answer waits until no attempt is under way any more."""
        if not await api.endpoints.delete(webhook_id, _writable(caller), api.clock()):
            raise _unknown(webhook_id)
        await api.deletion.settle(webhook_id)
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_secrets(router: APIRouter, api: ApiDependencies) -> None:
    @router.post("/webhooks/{webhook_id}/rotate", response_model=EndpointWithSecretView, responses=documented(409))
    @requires(Permission.WEBHOOKS_WRITE)
    async def rotate_webhook_secret(webhook_id: WebhookPath, caller: Caller) -> Response:
        """Replace the secret. Both sign every delivery for 24 hours, so that receivers can change over meanwhile."""
        visible, now = _writable(caller), api.clock()
        before = await _find(api, webhook_id, visible)
        secret = new_secret()
        secrets = with_new_secret(before.secrets, _vault(api).seal(webhook_id, secret), now)
        if secrets is None:
            hours = BOTH_SECRETS_FOR.total_seconds() / 3600
            raise conflict(f"{len(before.secrets)} secrets still sign: each does so for {hours:g} hours")
        after = await api.endpoints.replace_secrets(before, secrets, visible, now)
        if after is None:
            raise conflict(f"Webhook {webhook_id} was changed at the same moment: nothing was done")
        return json_response(show_endpoint(after, secret))

    @router.post(
        "/webhooks/{webhook_id}/test",
        status_code=HTTPStatus.ACCEPTED,
        response_model=DeliveryView,
        responses=documented(409),
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def send_test_event(webhook_id: WebhookPath, caller: Caller) -> Response:
        """Send the event `webhook.test`, whichever events the endpoint asked for; its delivery shows the outcome."""
        endpoint = await _find_sendable(api, webhook_id, _writable(caller))
        now = api.clock()
        delivery = delivery_of(trial_event(webhook_id, uuid.uuid4().hex, now), endpoint, now)
        await api.deliveries.insert([delivery])
        api.on_due([webhook_id])
        return _accepted(delivery)


def _add_deliveries(router: APIRouter, api: ApiDependencies) -> None:
    @router.get("/webhooks/{webhook_id}/deliveries", response_model=DeliveryPage)
    @requires(Permission.WEBHOOKS_READ)
    async def list_deliveries(
        webhook_id: WebhookPath,
        status: Status | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
        *,
        caller: Caller,
    ) -> Response:
        """Deliveries to an endpoint, the newest first; all of the last 30 days, or those in one status."""
        visible = _readable(caller)
        await _find(api, webhook_id, visible)
        statuses = list(Status) if status is None else [status]
        page = await api.deliveries.page(webhook_id, statuses, visible, after=after_time(cursor), limit=limit)
        return page_response(page, show_delivery, key=_key, limit=limit)

    @router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}", response_model=DeliveryDetailView)
    @requires(Permission.WEBHOOKS_READ)
    async def get_delivery(webhook_id: WebhookPath, delivery_id: DeliveryPath, caller: Caller) -> Response:
        """One delivery with what is sent and its latest attempts."""
        visible = _readable(caller)
        await _find(api, webhook_id, visible)
        delivery = await api.deliveries.find(webhook_id, delivery_id, visible)
        if delivery is None:
            raise not_found(f"Delivery {delivery_id} to webhook {webhook_id}")
        return json_response(show_delivery_in_detail(delivery))


def _add_redelivery(router: APIRouter, api: ApiDependencies) -> None:
    @router.post(
        "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
        status_code=HTTPStatus.ACCEPTED,
        response_model=DeliveryView,
        responses=documented(409),
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def redeliver(webhook_id: WebhookPath, delivery_id: DeliveryPath, caller: Caller) -> Response:
        """Attempt a delivery again, now, whatever became of it; with the same `webhook-id`."""
        visible = _writable(caller)
        await _find_sendable(api, webhook_id, visible)
        delivery = await api.deliveries.redeliver(webhook_id, delivery_id, visible, api.clock())
        if delivery is None:
            raise not_found(f"Delivery {delivery_id} to webhook {webhook_id}")
        api.on_due([webhook_id])
        return _accepted(delivery)

    @router.post(
        "/webhooks/{webhook_id}/redeliver",
        status_code=HTTPStatus.ACCEPTED,
        response_model=RedeliveredView,
        responses=documented(409),
    )
    @requires(Permission.WEBHOOKS_WRITE)
    async def redeliver_failed(webhook_id: WebhookPath, body: FailedSince, caller: Caller) -> Response:
        """Attempt all failed deliveries again that were recorded since a time."""
        visible = _writable(caller)
        await _find_sendable(api, webhook_id, visible)
        number = await api.deliveries.redeliver_failed(webhook_id, body.since, visible, api.clock())
        api.on_due([webhook_id])
        headers = located("webhooks", webhook_id, "deliveries")
        return json_response({"redelivered": number}, HTTPStatus.ACCEPTED, headers)


def _accepted(delivery: Delivery) -> Response:
    headers = located("webhooks", delivery.endpoint_id, "deliveries", delivery.event_id)
    return json_response(show_delivery(delivery), HTTPStatus.ACCEPTED, headers)


def _key(delivery: Delivery) -> Key:
    return time_key(delivery.created_at, delivery.event_id)


def _readable(caller: Principal) -> Visible:
    return caller.visible(Permission.WEBHOOKS_READ)


def _writable(caller: Principal) -> Visible:
    return caller.visible(Permission.WEBHOOKS_WRITE)


def _checked(url: str, api: ApiDependencies) -> str:
    try:
        return check_url(url, allow_private=api.allow_private)
    except ValueError as error:
        raise invalid(("url", str(error))) from None


def _check_changes(changes: EndpointChanges, api: ApiDependencies) -> None:
    if changes.url is not None:
        _checked(changes.url, api)
    if changes.enabled:
        _require_events(api)


def _require_events(api: ApiDependencies) -> None:
    if not api.gets_events:
        raise conflict("Webhooks are off here (ORDERSAGA_WEBHOOKS): no endpoint gets events")


def _vault(api: ApiDependencies) -> SecretVault:
    if api.vault is None:
        detail = "No key for the secrets of webhooks is configured (ORDERSAGA_WEBHOOK_KEY)"
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail)
    return api.vault


async def _find(api: ApiDependencies, webhook_id: str, visible: Visible) -> Endpoint:
    return _found(webhook_id, await api.endpoints.find(webhook_id, visible))


async def _find_sendable(api: ApiDependencies, webhook_id: str, visible: Visible) -> Endpoint:
    """Return an endpoint to which deliveries are sent; without the key that signs them, nothing is."""
    endpoint = await _find(api, webhook_id, visible)
    _vault(api)
    if not endpoint.enabled:
        raise conflict(f"Webhook {webhook_id} is disabled: enable it first")
    return endpoint


def _found(webhook_id: str, endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise _unknown(webhook_id)
    return endpoint


def _unknown(webhook_id: str) -> ProblemError:
    return not_found(f"Webhook {webhook_id}")
