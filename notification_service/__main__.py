"""The entry point of the notification service: `python -m notification_service`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta

import structlog

from notification_service.api import ApiDependencies, create_router
from notification_service.deletion import Deletion
from notification_service.deliveries import Deliveries
from notification_service.dispatcher import Dispatcher
from notification_service.endpoints import Endpoints
from notification_service.handlers import handlers
from notification_service.metrics import Counts
from notification_service.schema import SCHEMA
from notification_service.sender import Sender
from notification_service.settings import NotificationSettings
from notification_service.signing import sign
from notification_service.signing_secrets import SecretVault
from notification_service.worker import Limits
from shared.clock import utc_now
from shared.live_settings import live_secret
from shared.service import Connections, Parts, run
from shared.services import NOTIFICATION

_log = structlog.get_logger(__name__)


def assemble(settings: NotificationSettings, connections: Connections) -> Parts:
    """Build the service from its settings and connections."""
    endpoints = Endpoints(connections.database)
    deliveries = Deliveries(connections.database, timedelta(days=settings.webhook_retention_days))
    deletion = Deletion(endpoints, deliveries, utc_now, connections.failpoint)
    background: list[Callable[[], Awaitable[None]]] = [Counts(endpoints, deliveries, utc_now).run, deletion.run]
    drain: list[Callable[[], Awaitable[None]]] = []
    on_due: Callable[[Iterable[str]], None] = _nothing
    keys = live_secret(settings, "webhook_key")
    vault = SecretVault(keys) if keys is not None else None
    if vault is not None:
        sender = Sender(allow_private=settings.webhook_allow_private, timeout=settings.webhook_timeout_seconds)
        dispatcher = Dispatcher(
            endpoints,
            deliveries,
            vault,
            sender,
            sign,
            limits_from(settings),
            clock=utc_now,
            failpoint=connections.failpoint,
        )
        background.append(dispatcher.run)
        drain.append(sender.close)
        on_due = dispatcher.wake
    else:
        _log.warning("no key for the secrets of webhooks is configured: none can be registered, and nothing is sent")
    if not settings.webhooks:
        _log.warning("webhooks are off: none can be registered, and no event is recorded for those that are")
    api = ApiDependencies(
        endpoints,
        deliveries,
        deletion,
        vault,
        utc_now,
        on_due,
        allow_private=settings.webhook_allow_private,
        most_per_owner=settings.webhooks_per_owner,
        gets_events=settings.webhooks,
    )
    return Parts(
        handlers=handlers(endpoints, deliveries, utc_now, on_due),
        router=create_router(api),
        collections=SCHEMA,
        background=background,
        drain=drain,
    )


def limits_from(settings: NotificationSettings) -> Limits:
    """Convert the settings to the values that the workers use."""
    return Limits(
        at_once=settings.webhook_attempts_at_once,
        per_endpoint=settings.webhook_attempts_per_endpoint,
        timeout=timedelta(seconds=settings.webhook_timeout_seconds),
        retry_delays=settings.webhook_retry_delays,
    )


def _nothing(_endpoint_ids: Iterable[str]) -> None:
    return None


def main() -> None:
    """Run the service."""
    run(NOTIFICATION, NotificationSettings, assemble)


if __name__ == "__main__":
    main()
