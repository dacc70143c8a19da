"""Runs one job to its end or to its next wait: the I/O around the decisions of `lifecycle`.

With the package's lock: check what is for sale, adopt what an earlier attempt has bought, else buy and verify. Then,
without the lock: ask for the access to the server. Every step is recorded before the next one begins.
"""

from collections.abc import Callable
from typing import NamedTuple

import structlog
from structlog.contextvars import bound_contextvars

from provisioning_service import lifecycle, metrics
from provisioning_service.addresses import is_inside
from provisioning_service.availability import find_package, pick_address, unavailable_reason
from provisioning_service.credentials import Vault
from provisioning_service.job import Job, State
from provisioning_service.jobs import Jobs
from provisioning_service.lease import JobLease, JobLeaseLostError, retry_until_available
from provisioning_service.lifecycle import Timeouts
from provisioning_service.ownership import Ownership
from provisioning_service.packages import Packages
from provisioning_service.provider import Access, Package, Provider, ProviderError, ProviderUnansweredError
from shared import tracing
from shared.clock import Clock
from shared.errors import OwnershipLostError
from shared.failpoints import (
    ADDRESS_CLAIMED,
    BEFORE_BUY,
    BEFORE_STATUS,
    BOUGHT,
    JOB_LOCKED,
    JOB_WAITING,
    Failpoint,
)

_log = structlog.get_logger(__name__)


class JobCollections(NamedTuple):
    """The collections that a job reads and writes."""

    jobs: Jobs
    ownership: Ownership
    packages: Packages


class JobRunner:
    """Runs the claimed jobs of one process, any number at once."""

    def __init__(
        self,
        collections: JobCollections,
        provider: Provider,
        vault: Vault,
        timeouts: Timeouts,
        *,
        clock: Clock,
        failpoint: Failpoint,
        on_low_package: Callable[[], None],
    ) -> None:
        self._collections = collections
        self._provider = provider
        self._vault = vault
        self._timeouts = timeouts
        self._clock = clock
        self._failpoint = failpoint
        self._on_low_package = on_low_package

    async def run(self, lease: JobLease, on_freed: Callable[[], None]) -> None:
        """Run the job; call `on_freed` when its package is free for the next job in the queue.

        Whatever goes wrong, the job continues later: at once, at its next attempt, or when the claim has expired.
        """
        job = lease.job
        try:
            with bound_contextvars(order_id=job.order_id), tracing.working("run job", job.order_id, job.traceparent):
                async with lease:
                    await self._run(lease, on_freed)
        except OwnershipLostError as error:
            _log.warning("stopped working on a job", order_id=lease.job.order_id, why=str(error))
        finally:
            on_freed()
        if lease.job.state is State.WAITING:
            self._failpoint(JOB_WAITING)

    async def _run(self, lease: JobLease, on_freed: Callable[[], None]) -> None:
        try:
            access = None
            if lease.job.ip is None:
                access = await self._obtain_address(lease)
                await lease.release_lock()
                on_freed()
            if lease.job.state is State.RUNNING:
                await self._finish(lease, access)
        except OwnershipLostError:
            raise
        except Exception as error:  # noqa: BLE001 - counted, so that a job that keeps failing ends visibly
            _log.exception("unexpected error in a job", order_id=lease.job.order_id)
            if lease.job.state is State.RUNNING:
                await self._record_unexpected_error(lease, f"fault: {type(error).__name__}")

    # --- With the package's lock. ---

    async def _obtain_address(self, lease: JobLease) -> Access | None:
        """Adopt or buy an address. Afterwards the job has one or is no longer running.

        Returns the access to the server if it is known already.
        """
        self._failpoint(JOB_LOCKED)
        package = await self._check_stock(lease)
        if package is None:
            return None
        access = await self._adopt_purchase(lease, package)
        if lease.job.ip is not None or lease.job.state is not State.RUNNING:
            return access
        if lease.job.cancel_requested:
            await self._record(lease, lifecycle.stopped(lease.job, self._clock()))
            return None
        ip = await self._choose_address(lease, package)
        if ip is not None:
            return await self._buy(lease, ip, package)
        return None

    async def _check_stock(self, lease: JobLease) -> Package | None:
        """Ask the provider for the package's stock; return None if that ends the attempt."""
        job = lease.job
        try:
            packages = await self._provider.packages()
        except ProviderError as error:
            await self._fail_check(lease, str(error))
            return None
        await lease.report_progress()
        package = find_package(packages, job.package or "", job.package_id)
        if package is None and job.purchase is not None:
            # Without the package nothing shows whether the earlier attempt has bought, so it cannot be ruled out yet.
            await self._fail_check(lease, "the provider does not list the package")
            return None
        if package is not None:
            await self._record_stock(job, package)
        disabled = await retry_until_available(lambda: self._collections.packages.disabled_reason(job.lock_key))
        if (why := unavailable_reason(package, disabled)) and job.purchase is None:
            await self._record(lease, lifecycle.not_available(job, why, self._clock()))
            return None
        return package

    async def _record_stock(self, job: Job, package: Package) -> None:
        key = job.lock_key or package.name
        now = self._clock()
        if await retry_until_available(lambda: self._collections.packages.record(key, package, now)):
            self._on_low_package()
        if self._collections.packages.is_low(package):
            _log.warning("package is low on addresses", package=key, free=package.ipv4)

    async def _adopt_purchase(self, lease: JobLease, package: Package) -> Access | None:
        """Find out whether an earlier attempt has bought, and adopt its address."""
        job = lease.job
        if job.purchase is None:
            return None
        known = {*job.purchase.asked, *job.purchase.free_before}
        owners = await retry_until_available(lambda: self._collections.ownership.owners(known))
        own = [ip for ip, owner in owners.items() if owner == job.order_id and ip not in job.wrong_ips]
        if own:  # the process died after it had claimed the address
            await self._record(lease, lifecycle.bought(job, own[0], "the provider assigned", self._clock()))
            return None
        others = await retry_until_available(lambda: self._collections.jobs.asked_by_others(job, self._clock()))
        for ip in lifecycle.possibly_bought(job, package.ips, others - {*job.purchase.asked} | owners.keys()):
            try:
                access = await self._provider.access(ip)
            except ProviderError as error:
                await self._fail_check(lease, f"{ip} was sold, and whether to us could not be found out: {error}")
                return None
            if access is not None and await self._claim(job, ip) == job.order_id:
                metrics.adopted.inc()
                await self._record(
                    lease, lifecycle.bought(job, ip, "an attempt without an answer bought", self._clock())
                )
                return access
        await self._record(lease, lifecycle.nothing_bought(job, self._clock(), self._timeouts))
        return None

    async def _choose_address(self, lease: JobLease, package: Package) -> str | None:
        """Choose the address to ask for; return None if that ends the attempt."""
        job = lease.job
        owners = await retry_until_available(lambda: self._collections.ownership.owners(package.ips))
        others = await retry_until_available(lambda: self._collections.jobs.asked_by_others(job, self._clock()))
        earlier = job.purchase.asked if job.purchase else ()
        disabled = await retry_until_available(lambda: self._collections.packages.disabled_reason(job.lock_key))
        closed = unavailable_reason(package, disabled)
        free = [ip for ip in package.ips if is_inside(job.package or "", ip) and ip not in owners and not closed]
        ip = pick_address([ip for ip in free if ip not in others], earlier)
        if ip is None and free:
            await self._fail_check(lease, "the free addresses are being bought for other orders")
        elif ip is None:
            why = closed or f"{lifecycle.NO_ADDRESS}: those that it lists are not for this order"
            await self._record(lease, lifecycle.not_available(job, why, self._clock()))
        return ip

    async def _buy(self, lease: JobLease, asked: str, package: Package) -> Access | None:
        before = lease.job
        await lease.report_progress()
        after = lifecycle.buy_started(before, asked, package.ips, self._clock(), self._timeouts)
        await lease.record(after, unless_cancelled=True)
        if lease.job.version == before.version:  # cancelled just in time
            await self._record(lease, lifecycle.stopped(lease.job, self._clock()))
            return None
        self._failpoint(BEFORE_BUY)
        metrics.count_attempt(metrics.BUY, lease.job.buy_attempts)
        try:
            ip = await self._provider.buy(asked, before.ram, before_sending=lease.ensure_held)
        except JobLeaseLostError:
            await lease.record(lifecycle.buy_not_sent(lease.job, before, self._clock()))
            raise
        except ProviderError as error:
            return await self._search_after_failure(lease, error)
        self._failpoint(BOUGHT)
        await self._verify(lease, ip)
        return None

    async def _search_after_failure(self, lease: JobLease, error: ProviderError) -> Access | None:
        """After an attempt that gave no address, check at once whether it has bought one nevertheless."""
        answered = not isinstance(error, ProviderUnansweredError)
        await self._record(
            lease, lifecycle.no_address_received(lease.job, str(error), self._clock(), answered=answered)
        )
        await lease.report_progress()
        job = lease.job
        try:
            package = find_package(await self._provider.packages(), job.package or "", job.package_id)
        except ProviderError:
            package = None
        if package is None:
            await self._record(lease, lifecycle.search_failed(job, self._clock(), self._timeouts))
            return None
        return await self._adopt_purchase(lease, package)

    async def _verify(self, lease: JobLease, ip: str) -> None:
        """Give the address to the order if it is inside the package and free; otherwise no order gets it."""
        job, now = lease.job, self._clock()
        if not is_inside(job.package or "", ip):
            await retry_until_available(lambda: self._collections.ownership.claim(ip, job.order_id, now, wrong=True))
            await self._record(lease, lifecycle.wrong_address(job, ip, now))
            return
        owner = await self._claim(job, ip)
        if owner != job.order_id:
            await self._record(lease, lifecycle.duplicate_address(job, ip, owner, now))
            return
        self._failpoint(ADDRESS_CLAIMED)
        await self._record(lease, lifecycle.bought(job, ip, "the provider assigned", now))

    async def _claim(self, job: Job, ip: str) -> str:
        now = self._clock()
        return await retry_until_available(lambda: self._collections.ownership.claim(ip, job.order_id, now))

    # --- Without the lock. ---

    async def _finish(self, lease: JobLease, access: Access | None) -> None:
        """Ask for the access to the server unless it is known, and complete the job."""
        self._failpoint(BEFORE_STATUS)
        job = lease.job
        error_text = "the provider does not know the address"
        if access is None:
            metrics.count_attempt(metrics.ACCESS, job.status_attempts + 1)
            try:
                access = await self._provider.access(job.ip or "")
            except ProviderError as error:
                error_text = str(error)
        if access is None:
            await self._fail_status(lease, error_text)
            return
        sealed = self._vault.seal(job.order_id, access)
        await self._record(lease, lifecycle.completed(job, access, sealed, self._clock()))

    # --- Recording. ---

    async def _fail_check(self, lease: JobLease, error: str) -> None:
        await self._record(lease, lifecycle.check_failed(lease.job, error, self._clock(), self._timeouts))

    async def _fail_status(self, lease: JobLease, error: str) -> None:
        await self._record(lease, lifecycle.status_failed(lease.job, error, self._clock(), self._timeouts))

    async def _record_unexpected_error(self, lease: JobLease, error: str) -> None:
        """Count an unexpected error as a failed attempt, so that a job that keeps failing ends visibly."""
        await (self._fail_check if lease.job.ip is None else self._fail_status)(lease, error)

    async def _record(self, lease: JobLease, after: Job) -> None:
        was_cancelled = lease.job.cancel_requested
        await lease.record(after)
        if lease.job.cancel_requested and not was_cancelled:  # the cancellation arrived during this step
            await lease.record(lifecycle.cancellation_honoured(lease.job, self._clock()))
        if lease.job.ended:
            metrics.count_end(lease.job)
            _log.info("job ended", order_id=lease.job.order_id, state=lease.job.state, reason=lease.job.failure_reason)
