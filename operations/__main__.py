"""The composition root of the operations process: `python -m operations`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from datetime import timedelta
from typing import Any

from pydantic import SecretStr
from pymongo import AsyncMongoClient

from notification_service.sender import Sender
from operations.approvals.policy import ApprovalPolicy
from operations.console import (
    BulkExecutor,
    ConsoleDependencies,
    ConsolePeople,
    Executor,
    IdentityProxy,
    IncidentWatch,
    Services,
    StackChecks,
)
from operations.dead_letters.ingest import PREFETCH, Ingest
from operations.dead_letters.notices import handlers
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import Replayer, ReplayWork
from operations.metrics import Observer
from operations.notifications.channels import TIMEOUT_SECONDS, Channels, Destinations
from operations.notifications.dispatcher import Dispatcher
from operations.notifications.mail import MailServer
from operations.notifications.records import NotificationRecords
from operations.routes import create_routes, explains_outages
from operations.samples.sampling import Sampler
from operations.schema import SCHEMA
from operations.settings import OperationsSettings
from operations.sign_in.oidc import OidcSignIn
from operations.sign_in.sessions import SessionLimits, Sessions
from shared.access.issuer import Issuer
from shared.background import run_periodically
from shared.bus.metrics import CONSUMER_UP
from shared.bus.rabbitmq import RabbitBus
from shared.clock import utc_now
from shared.database import Document
from shared.service import Connections, Parts, run
from shared.services import CONSOLE
from shared.topology import DEAD_LETTERS

MASK_EVERY_SECONDS = 3600.0


def assemble(settings: OperationsSettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    database = connections.database
    letters = LetterRecords(database)
    # A separate connection: a bus consumes from one queue, and letters and notices must not delay each other.
    letter_bus = RabbitBus(
        settings.amqp_url,
        prefetch=PREFETCH,
        repair_every=settings.topology_check_seconds,
        topology_mode=settings.topology,
        topology_options=settings.topology_options,
        name="ordersaga-dead-letters",
    )
    ingest = Ingest(letter_bus, letters, failpoint=connections.failpoint)
    CONSUMER_UP.labels(DEAD_LETTERS).set_function(lambda: ingest.unhealthy_reason is None)
    work = ReplayWork(database, Replayer(database, connections.publisher, failpoint=connections.failpoint))
    dependencies = _console_dependencies(settings, database.client)
    sessions = Sessions(database, dependencies.session_limits)
    checks = StackChecks(dependencies)
    channels = _channels(settings)
    audit_every = timedelta(seconds=settings.audit_interval_seconds)
    observer = Observer(
        dependencies.client,
        settings.database_prefix,
        settings.amqp_url,
        audit_every=audit_every,
        partitions=settings.partitions,
    )
    sampler = Sampler(database, dependencies.orders, observer.queue_ages, failpoint=connections.failpoint)

    async def take_letters() -> None:
        await letter_bus.start(DEAD_LETTERS)
        await ingest.run()

    return Parts(
        handlers=handlers(letters, utc_now),
        router=create_routes(dependencies, sessions, checks),
        collections=SCHEMA,
        pages=True,
        people=ConsolePeople(sessions, dependencies.proxy, dependencies.public_url),
        background=(
            take_letters,
            work.run,
            # Again and again: during an upgrade, a process of an earlier release may still record letters.
            lambda: run_periodically(letters.mask_words, every=MASK_EVERY_SECONDS, name="masking of words"),
            Executor(dependencies).run,
            BulkExecutor(dependencies, connections.failpoint).run_all,
            lambda: dependencies.audits.keep_schedule(audit_every),
            Dispatcher(NotificationRecords(database), channels, dependencies.public_url).run,
            IncidentWatch(dependencies, checks, connections.failpoint).run,
            observer.run,
            sampler.run,
        ),
        drain=(letter_bus.close, channels.close, dependencies.end_background_work, dependencies.services.close),
        health_checks={"dead letters": lambda: ingest.unhealthy_reason},
        explains_outages=explains_outages,
    )


def _console_dependencies(
    settings: OperationsSettings, client: AsyncMongoClient[Document] | Any
) -> ConsoleDependencies:
    return ConsoleDependencies(
        client=client,
        prefix=settings.database_prefix,
        mongodb_url=settings.mongodb_url,
        amqp_url=settings.amqp_url,
        services=Services(settings.service_urls, settings.api_key.get_secret_value() if settings.api_key else None),
        session_limits=SessionLimits(
            timedelta(seconds=settings.session_idle_seconds), timedelta(seconds=settings.session_seconds)
        ),
        proxy=_proxy(settings),
        oidc=_oidc(settings),
        approval_policy=ApprovalPolicy(settings.approval_amount, frozenset(settings.approval_actions)),
        channels=_destinations(settings).usable,
        public_url=settings.console_public_url or None,
    )


def _channels(settings: OperationsSettings) -> Channels:
    sender = Sender(allow_private=settings.notify_allow_private, timeout=TIMEOUT_SECONDS)
    return Channels(_destinations(settings), sender)


def _destinations(settings: OperationsSettings) -> Destinations:
    mail = None
    if settings.smtp_host:
        mail = MailServer(
            settings.smtp_host,
            settings.smtp_port,
            settings.smtp_security,
            settings.smtp_from,
            settings.smtp_username,
            _value(settings.smtp_password) or "",
        )
    return Destinations(
        _value(settings.notify_webhook_url),
        _value(settings.notify_webhook_secret),
        _value(settings.notify_slack_url),
        mail,
    )


def _value(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _proxy(settings: OperationsSettings) -> IdentityProxy | None:
    if not settings.operator_header:
        return None
    return IdentityProxy(settings.operator_header, settings.operator_roles_header, settings.trusted_proxies)


def _oidc(settings: OperationsSettings) -> OidcSignIn | None:
    if not settings.oidc_client_id:
        return None
    secret = settings.oidc_client_secret
    return OidcSignIn(
        Issuer(settings.oidc_issuer, settings.oidc_ca_file),
        settings.oidc_client_id,
        secret.get_secret_value() if secret else None,
        roles_claim=settings.oidc_roles_claim,
        scopes=settings.oidc_scopes,
    )


def main() -> None:
    """Run the process."""
    run(CONSOLE, OperationsSettings, assemble)


if __name__ == "__main__":
    main()
