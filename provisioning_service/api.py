"""HTTP routes of the provisioning service: jobs, packages, locks, and the only place that shows credentials."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import model_validator
from starlette.types import Scope

from provisioning_service.addresses import package_key
from provisioning_service.credentials import UnreadableCredentialsError, Vault
from provisioning_service.job import Job, Purchase, State, Step
from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import NO_PROVIDER
from provisioning_service.locks import Lock, Locks
from provisioning_service.package_cache import PackageCache
from provisioning_service.packages import Packages
from provisioning_service.provider import Package, Provider, ProviderError
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal, Visible
from shared.audit_log import MAX_REASON, REASON_HEADER, audit_log_of, reason_of
from shared.clock import Clock, to_rfc3339
from shared.contracts.base import Name, Text
from shared.cursors import write_cursor
from shared.http import Body, ProblemError, View, conflict, invalid, json_response, new_router, not_found, shown_as
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_id, page_response, read_cursor
from shared.problems import CONFLICT, PROVIDER_UNAVAILABLE
from shared.validation import wrong_field

OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]
PackageParameter = Annotated[str, Path(min_length=1, max_length=200)]

Reason = Annotated[
    str | None, Header(alias=REASON_HEADER, description="Why, in 1 to 500 characters; staff must say it")
]

NO_STORE = {"Cache-Control": "no-store"}

T = TypeVar("T")


class ApiDependencies(NamedTuple):
    """The dependencies of the routes; without a provider there are no packages to list."""

    jobs: Jobs
    locks: Locks
    packages: Packages
    provider: Provider | None
    vault: Vault | None
    clock: Clock


class AttemptView(View):
    """One line of a job's log; `outcome` is ok or failed."""

    step: Step
    at: str
    outcome: str
    detail: str


class PurchaseView(View):
    """An attempt to buy that has given no address; while it is not answered, the provider may still be at it."""

    asked: list[str]
    started_at: str
    answered: bool


class JobView(View):
    """An order's job; package and RAM (in MB) are null where a cancellation came before its request.

    `purchase` is the last attempt to buy that has given no address, with all addresses that were asked for; `wrongIps`
    are addresses that the provider assigned and the order must not have.
    """

    order_id: str
    owner_id: str | None
    package: str | None
    ram: int | None
    state: State
    step: Step
    run: int
    attempts: list[AttemptView]
    next_attempt_at: str | None
    purchase: PurchaseView | None
    ip: str | None
    wrong_ips: list[str]
    failure_reason: str | None
    created_at: str
    updated_at: str


class JobPage(View):
    """A page of jobs, in the order of their orders' ids."""

    items: list[JobView]
    next_cursor: str | None


class CredentialsView(View):
    """How to get into a server."""

    ip: str
    username: str
    password: str


class LockView(View):
    """Who holds a package, and until when unless the lease is renewed."""

    order_id: str
    acquired_at: str
    expires_at: str


class PackageLockView(LockView):
    """A held lock with its package; `progressAt` is when the holder last got further."""

    package: str
    progress_at: str


class PackageLockPage(View):
    """A page of held locks, by package, and the number on all pages."""

    items: list[PackageLockView]
    next_cursor: str | None
    total: int


class PackageView(View):
    """A package as the provider had it at most 5 s ago; `ipv4` counts its free addresses."""

    package_id: str
    name: str
    status: str
    ipv4: int
    low: bool
    disabled: bool
    disabled_reason: str | None
    lock: LockView | None


class PackageBody(Body):
    """Whether servers of a package may be bought, and why not."""

    model_config = shown_as({"disabled": True, "reason": "The provider is being migrated"})

    disabled: bool
    reason: Text | None = None

    @model_validator(mode="after")
    def _reason_is_for_an_end(self) -> "PackageBody":
        if not self.disabled and self.reason is not None:
            raise wrong_field("reason", "is allowed only with disabled true")
        return self


class PackageSwitchView(View):
    """Whether servers of a package may be bought."""

    package: str
    disabled: bool
    reason: str | None


class PackagePage(View):
    """A page of packages, by name, and the number on all pages."""

    items: list[PackageView]
    next_cursor: str | None
    total: int


def create_router(dependencies: ApiDependencies) -> APIRouter:
    """Build the routes."""
    router = new_router("provisioning")
    _add_jobs(router, dependencies)
    _add_packages(router, dependencies)
    _add_locks(router, dependencies)
    return router


def _add_jobs(router: APIRouter, dependencies: ApiDependencies) -> None:
    @router.get("/jobs", response_model=JobPage)
    @requires(Permission.ORDERS_READ)
    async def list_jobs(
        status: State | None = None,
        package: Annotated[Name | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
        *,
        caller: Caller,
    ) -> Response:
        """Jobs in the order of their orders' ids; all of them, or those in one state or for one package."""
        visible = caller.visible(Permission.ORDERS_READ)
        page = await dependencies.jobs.page(status, package, after=after_id(cursor), limit=limit, visible=visible)
        return page_response(page, show_job, key=lambda job: [job.order_id], limit=limit)

    @router.get("/jobs/{order_id}", response_model=JobView)
    @requires(Permission.ORDERS_READ)
    async def get_job(order_id: OrderIdParameter, caller: Caller) -> Response:
        """The job of one order."""
        visible = caller.visible(Permission.ORDERS_READ)
        return json_response(show_job(await _find(dependencies.jobs, order_id, visible)))

    @router.get(
        "/jobs/{order_id}/credentials",
        response_model=CredentialsView,
        responses=documented(CONFLICT, PROVIDER_UNAVAILABLE),
    )
    @requires(Permission.CREDENTIALS_READ)
    async def get_credentials(
        request: Request, order_id: OrderIdParameter, caller: Caller, _reason: Reason = None
    ) -> Response:
        """How to get into the order's server; never to be cached or logged. Each read is recorded with who, and why."""
        job = await _find(dependencies.jobs, order_id, caller.visible(Permission.CREDENTIALS_READ))
        if job.credentials is None:
            raise conflict(f"The job of order {order_id} is {job.state}: there are no credentials")
        if dependencies.vault is None:
            raise _unavailable("No key for the credentials is configured (ORDERSAGA_CREDENTIALS_KEY)")
        try:
            secret = dependencies.vault.open(order_id, job.credentials)
        except UnreadableCredentialsError as error:
            raise _unavailable(f"{error}: is an earlier key missing from ORDERSAGA_CREDENTIALS_KEY?") from None
        await record_credentials_read(request.scope, caller, order_id)
        return json_response(
            {"ip": secret.ip, "username": secret.username, "password": secret.password}, headers=NO_STORE
        )


async def record_credentials_read(scope: Scope, caller: Principal, order_id: str) -> None:
    """Record who reads the credentials, before they are shown.

    Raises ProblemError if staff do not say why, AuditUnavailableError if it cannot be recorded.
    """
    permission = Permission.CREDENTIALS_READ
    if caller.reaches_all(permission) and reason_of(scope) is None:
        raise invalid((REASON_HEADER, f"must say why, in 1 to {MAX_REASON} printable characters"))
    await audit_log_of(scope).credentials_read(scope, caller, permission, order_id)


def _add_packages(router: APIRouter, dependencies: ApiDependencies) -> None:
    cache = PackageCache(dependencies.provider) if dependencies.provider is not None else None

    @router.get("/packages", response_model=PackagePage, responses=documented(PROVIDER_UNAVAILABLE))
    @requires(Permission.PROVISIONING_READ)
    async def list_packages(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """The packages as the provider had them at most 5 s ago, by name, and who is buying from them."""
        if cache is None:
            raise _unavailable(NO_PROVIDER)
        try:
            packages = await cache.packages()
        except ProviderError as error:
            raise _unavailable(f"The provider does not list its packages: {error}") from None
        locks = {lock.key: lock for lock in await dependencies.locks.held() if lock.expires_at > dependencies.clock()}
        ordered = sorted(packages, key=_sort_key)
        page, following = _page(ordered, _sort_key, (str, str), limit, cursor)
        disabled = await dependencies.packages.disabled()
        shown = [
            _show_package(one, dependencies.packages.is_low(one), locks.get(package_key(one.name)), disabled)
            for one in page
        ]
        return json_response({"items": shown, "nextCursor": following, "total": len(ordered)})

    @router.patch("/packages/{package}", response_model=PackageSwitchView)
    @requires(Permission.CATALOGUE_WRITE)
    async def switch_package(package: PackageParameter, body: PackageBody) -> Response:
        """Buy nothing more from a package, or buy again: its orders fail with the reason and can be retried.

        A purchase that has begun is finished. This also works while the provider is away.
        """
        key = package_key(package)
        if body.disabled:
            await dependencies.packages.disable(key, body.reason, dependencies.clock())
        else:
            await dependencies.packages.enable(key)
        return json_response({"package": key, "disabled": body.disabled, "reason": body.reason})


def _add_locks(router: APIRouter, dependencies: ApiDependencies) -> None:
    @router.get("/locks", response_model=PackageLockPage)
    @requires(Permission.PROVISIONING_READ)
    async def list_locks(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Every lock that is recorded as held, also where its lease is over and nobody has taken it yet."""
        held = await dependencies.locks.held()
        page, following = _page(held, lambda lock: [lock.key], (str,), limit, cursor)
        items = [_show_held(lock) for lock in page]
        return json_response({"items": items, "nextCursor": following, "total": len(held)})

    @router.delete("/locks/{package}", response_model=PackageLockView)
    @requires(Permission.LOCKS_CLEAR)
    async def clear_lock(package: PackageParameter) -> Response:
        """Free a package whoever holds it; answers how it was held. The holder stops before it buys."""
        lock = await dependencies.locks.clear(package_key(package))
        if lock is None:
            raise not_found(f"A held lock of package {package}")
        return json_response(_show_held(lock))


async def _find(jobs: Jobs, order_id: str, visible: Visible) -> Job:
    job = await jobs.find(order_id, visible)
    if job is None:
        raise not_found(f"A job of order {order_id}")
    return job


def _unavailable(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=PROVIDER_UNAVAILABLE)


def _page(
    entries: Sequence[T], sort_key: Callable[[T], list[str]], kinds: Sequence[type], limit: int, cursor: str | None
) -> tuple[Sequence[T], str | None]:
    """Cut a page out of a list that fits in memory; return it with the cursor of the next page."""
    after = None if cursor is None else read_cursor(cursor, kinds)
    rest = [entry for entry in entries if after is None or sort_key(entry) > after]
    return rest[:limit], write_cursor(sort_key(rest[limit - 1])) if len(rest) > limit else None


def _sort_key(package: Package) -> list[str]:
    return [package.name, package.package_id]


def show_job(job: Job) -> dict[str, Any]:
    """Build the response of JobView."""
    return {
        "orderId": job.order_id,
        "ownerId": job.owner_id,
        "package": job.package,
        "ram": job.ram,
        "state": job.state,
        "step": job.step,
        "run": job.run,
        "attempts": [
            {"step": attempt.step, "at": to_rfc3339(attempt.at), "outcome": attempt.outcome, "detail": attempt.detail}
            for attempt in job.attempts
        ],
        "nextAttemptAt": _moment(job.due_at if job.state is State.WAITING else None),
        "purchase": _show_purchase(job.purchase),
        "ip": job.ip,
        "wrongIps": list(job.wrong_ips),
        "failureReason": job.failure_reason,
        "createdAt": to_rfc3339(job.created_at),
        "updatedAt": to_rfc3339(job.updated_at),
    }


def _show_purchase(purchase: Purchase | None) -> dict[str, Any] | None:
    if purchase is None:
        return None
    return {
        "asked": list(purchase.asked),
        "startedAt": to_rfc3339(purchase.started_at),
        "answered": purchase.answered,
    }


def _show_package(package: Package, low: bool, lock: Lock | None, disabled: Mapping[str, str | None]) -> dict[str, Any]:
    key = package_key(package.name)
    return {
        "packageId": package.package_id,
        "name": package.name,
        "status": package.status,
        "ipv4": package.ipv4,
        "low": low,
        "disabled": key in disabled,
        "disabledReason": disabled.get(key),
        "lock": _show_lock(lock) if lock else None,
    }


def _show_lock(lock: Lock) -> dict[str, Any]:
    return {
        "orderId": lock.order_id,
        "acquiredAt": to_rfc3339(lock.acquired_at),
        "expiresAt": to_rfc3339(lock.expires_at),
    }


def _show_held(lock: Lock) -> dict[str, Any]:
    return {"package": lock.key, **_show_lock(lock), "progressAt": to_rfc3339(lock.progress_at)}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else to_rfc3339(moment)
