"""The dependencies of the console's pages."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

from pymongo import AsyncMongoClient

from operations.approvals.policy import ApprovalPolicy
from operations.audit.runner import AuditedStack, AuditRunner
from operations.audit.runs import AuditRuns
from operations.console.people import IdentityProxy
from operations.console.upstream import Services
from operations.sign_in.oidc import OidcSignIn
from operations.sign_in.sessions import SessionLimits
from shared.clock import Clock, utc_now
from shared.database import Collection, Database, Document
from shared.services import CONSOLE, NOTIFICATION, ORDER, PROVISIONING

_CANCEL_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ConsoleDependencies:
    """The servers and services behind the pages.

    The databases of the services are only read. `proxy` names people by headers, None if they sign in here; `oidc` is
    how they do, None if only by links.
    """

    client: AsyncMongoClient[Document]
    prefix: str
    mongodb_url: str
    amqp_url: str
    services: Services
    clock: Clock = utc_now
    session_limits: SessionLimits = field(default_factory=SessionLimits)
    proxy: IdentityProxy | None = None
    oidc: OidcSignIn | None = None
    approval_policy: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    channels: Sequence[str] = ()
    """The channels by which notifications can be sent."""
    public_url: str | None = None
    """The address at which browsers reach the console; None for the one that a request names."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False, repr=False, compare=False)

    def run_in_background(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run the work that a request began, beyond its answer."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end_background_work(self) -> None:
        """Cancel what requests began, and wait until it has recorded that: before the connections are closed."""
        while self._tasks:  # again if it lasts: a driver may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks), timeout=_CANCEL_AGAIN_SECONDS)

    @property
    def operations(self) -> Database:
        """The database of operations."""
        return self.client[CONSOLE.database_in(self.prefix)]

    @property
    def audit_runs(self) -> AuditRuns:
        """The results of audits."""
        return AuditRuns(self.operations, self.clock)

    @property
    def audits(self) -> AuditRunner:
        """Runs audits of this stack."""
        return AuditRunner(AuditedStack(self.mongodb_url, self.amqp_url, self.prefix), self.audit_runs)

    @property
    def orders(self) -> Collection:
        """The orders of the order service."""
        return self.client[ORDER.database_in(self.prefix)]["orders"]

    @property
    def packages(self) -> Collection:
        """The packages as last seen by the provisioning service."""
        return self.client[PROVISIONING.database_in(self.prefix)]["packages"]

    @property
    def jobs(self) -> Collection:
        """The jobs of the provisioning service."""
        return self.client[PROVISIONING.database_in(self.prefix)]["jobs"]

    @property
    def webhook_deliveries(self) -> Collection:
        """The deliveries to webhooks, as the notification service records them."""
        return self.client[NOTIFICATION.database_in(self.prefix)]["deliveries"]
