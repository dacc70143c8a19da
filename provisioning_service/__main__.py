"""The entry point of the provisioning service: `python -m provisioning_service`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from pymongo.read_concern import ReadConcern

from provisioning_service import jobs as job_records
from provisioning_service import locks as lock_records
from provisioning_service import ownership as address_records
from provisioning_service import packages as package_records
from provisioning_service.api import ApiDependencies, create_router
from provisioning_service.credentials import Vault
from provisioning_service.handlers import handlers
from provisioning_service.job import Job
from provisioning_service.job_runner import JobCollections, JobRunner
from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import Timeouts
from provisioning_service.locks import Locks
from provisioning_service.outbox import Outbox
from provisioning_service.ownership import Ownership
from provisioning_service.packages import Packages
from provisioning_service.provider import Provider
from provisioning_service.scheduler import Scheduler
from provisioning_service.schema import SCHEMA
from provisioning_service.settings import ProvisioningSettings
from provisioning_service.smartvps import SmartVps
from shared.clock import utc_now
from shared.live_settings import live_secret
from shared.service import Connections, Parts, run
from shared.services import PROVISIONING

_log = structlog.get_logger(__name__)


def assemble(settings: ProvisioningSettings, connections: Connections) -> Parts:
    """Build the service from its settings and connections."""
    # No decision may rest on a write that a failover could take back, such as another process's claim of an address.
    database = connections.database.with_options(read_concern=ReadConcern("majority"))
    jobs = Jobs(database[job_records.COLLECTION])
    locks = Locks(database[lock_records.COLLECTION])
    packages = Packages(database[package_records.COLLECTION], settings.low_ip_threshold)
    collections = JobCollections(jobs, Ownership(database[address_records.COLLECTION]), packages)
    outbox = Outbox(jobs, packages, connections.publisher, utc_now, connections.failpoint)
    provider = open_provider(settings)
    keys = live_secret(settings, "credentials_key")
    vault = Vault(keys) if keys is not None else None
    background: list[Callable[[], Awaitable[None]]] = [outbox.run]
    drain: list[Callable[[], Awaitable[None]]] = []
    wake: Callable[[], None] = _nothing
    if provider is not None and vault is not None:
        timeouts = timeouts_from(settings)
        runner = JobRunner(
            collections,
            provider,
            vault,
            timeouts,
            clock=utc_now,
            failpoint=connections.failpoint,
            on_low_package=outbox.announce_low_packages,
        )
        scheduler = Scheduler(
            jobs, locks, runner, outbox, timeouts, clock=utc_now, max_concurrent=settings.jobs_at_once
        )
        background.append(scheduler.run)
        drain.append(provider.close)
        wake = scheduler.wake
    else:
        _log.warning("no server provider is configured: new jobs are refused, existing ones are paused")

    def on_change(job: Job) -> None:
        outbox.post(job)
        wake()

    return Parts(
        handlers=handlers(jobs, utc_now, on_change, has_provider=provider is not None),
        router=create_router(ApiDependencies(jobs, locks, packages, provider, vault, utc_now)),
        collections=SCHEMA,
        background=background,
        drain=drain,
    )


def open_provider(settings: ProvisioningSettings) -> Provider | None:
    """Open the provider named in the settings, if any. A second provider becomes another branch here."""
    username, password = live_secret(settings, "smartvps_username"), live_secret(settings, "smartvps_password")
    if settings.smartvps_url is None or username is None or password is None:
        return None
    return SmartVps(
        url=settings.smartvps_url,
        username=username,
        password=password,
        buy_timeout=settings.buy_timeout_seconds,
        status_timeout=settings.status_timeout_seconds,
        stock_timeout=settings.stock_timeout_seconds,
    )


def timeouts_from(settings: ProvisioningSettings) -> Timeouts:
    """Convert the settings to the values that `lifecycle` uses."""
    return Timeouts(
        buy_attempts=settings.buy_attempts,
        buy_delays=tuple(timedelta(seconds=delay) for delay in settings.buy_retry_delays),
        buy_timeout=timedelta(seconds=settings.buy_timeout_seconds),
        status_attempts=settings.status_attempts,
        status_delays=tuple(timedelta(seconds=delay) for delay in settings.status_retry_delays),
        lock_wait=timedelta(seconds=settings.lock_wait_seconds),
        lock_attempts=settings.lock_attempts,
        lease=timedelta(seconds=settings.lock_lease_seconds),
    )


def _nothing() -> None:
    return None


def main() -> None:
    """Run the service."""
    run(PROVISIONING, ProvisioningSettings, assemble)


if __name__ == "__main__":
    main()
