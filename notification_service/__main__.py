"""The entry point of the notification service: `python -m notification_service`."""

from collections.abc import Iterable
from datetime import timedelta

from notification_service.api import ApiDependencies, create_router
from notification_service.deliveries import Deliveries
from notification_service.endpoints import Endpoints
from notification_service.handlers import handlers
from notification_service.schema import SCHEMA
from notification_service.settings import NotificationSettings
from notification_service.signing_secrets import SecretVault
from shared.clock import utc_now
from shared.live_settings import live_secret
from shared.service import Connections, Parts, run
from shared.services import NOTIFICATION


def assemble(settings: NotificationSettings, connections: Connections) -> Parts:
    """Build the service from its settings and connections."""
    endpoints = Endpoints(connections.database)
    deliveries = Deliveries(connections.database, timedelta(days=settings.webhook_retention_days))
    keys = live_secret(settings, "webhook_key")
    vault = SecretVault(keys) if keys is not None else None

    def on_due(endpoint_ids: Iterable[str]) -> None:
        del endpoint_ids

    return Parts(
        handlers=handlers(endpoints, deliveries, utc_now, on_due),
        router=create_router(
            ApiDependencies(
                endpoints,
                deliveries,
                vault,
                utc_now,
                on_due,
                allow_private=settings.webhook_allow_private,
                most_per_owner=settings.webhooks_per_owner,
            )
        ),
        collections=SCHEMA,
    )


def main() -> None:
    """Run the service."""
    run(NOTIFICATION, NotificationSettings, assemble)


if __name__ == "__main__":
    main()
