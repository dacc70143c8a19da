"""The audit page: runs one audit at a time in the background, and shows its progress and result."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from fastapi import APIRouter, Request, Response

from operations.actions import record_action
from operations.audit import audit
from operations.audit.report import INVARIANTS, RECORD_NAMES, Report
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor, redirect
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.outage_words import in_words

MOST_SHOWN = 200
LONGEST_SECONDS = 3600.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class AuditRun:
    """One audit: `report` is None while it runs, and Unavailable if it failed."""

    by: str
    started_at: datetime
    judged: int = 0
    ended_at: datetime | None = None
    report: Report | Unavailable | None = None


@dataclass(slots=True)
class Auditor:
    """Runs audits, one at a time, and remembers the last one."""

    dependencies: ConsoleDependencies
    last: AuditRun | None = None
    _task: "asyncio.Task[None] | None" = field(default=None)

    @property
    def busy(self) -> bool:
        """True while an audit is running."""
        return self._task is not None and not self._task.done()

    def start(self, by: str) -> bool:
        """Start an audit; return False if one is running."""
        if self.busy:
            return False
        self.last = run = AuditRun(by, self.dependencies.clock())
        self._task = asyncio.create_task(self._run_audit(run), name="audit")
        return True

    async def _run_audit(self, run: AuditRun) -> None:
        def count(judged: int) -> None:
            run.judged += judged

        dependencies = self.dependencies
        try:
            run.report = await attempt(
                audit(dependencies.mongodb_url, dependencies.amqp_url, dependencies.prefix, on_progress=count),
                "The audit",
                LONGEST_SECONDS,
            )
        except Exception as error:  # noqa: BLE001 - logged, and shown on the page
            _log.exception("audit failed")
            run.report = Unavailable(f"The audit failed: {in_words(error)}. The log of the console has the details.")
        finally:
            run.ended_at = dependencies.clock()
        await attempt(self._record(run), "MongoDB")

    async def _record(self, run: AuditRun) -> None:
        match run.report:
            case Report() as report:
                found = len(report.violations) + report.unlisted
                outcome = "the books balance" if report.ok else f"{found} violation{'s' if found != 1 else ''}"
            case Unavailable(why):
                outcome = f"not done: {why}"
            case None:
                outcome = "not done"
        await record_action(
            self.dependencies.operations,
            by=run.by,
            why="to check that the books balance",
            action="audit",
            subject="all",
            outcome=outcome,
        )


def create_audit(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page, its live part, and the button."""
    router, auditor = pages.router(), Auditor(dependencies)

    async def show(request: Request, template: str) -> Response:
        return pages.show(
            request,
            template,
            run=auditor.last,
            busy=auditor.busy,
            invariants=INVARIANTS,
            record_names=RECORD_NAMES,
            most=MOST_SHOWN,
        )

    @router.get("/audit")
    @requires(Permission.LETTERS_READ)
    async def page(request: Request) -> Response:
        return await show(request, "audit.html")

    @router.get("/audit/result")
    @requires(Permission.LETTERS_READ)
    async def live(request: Request) -> Response:
        return await show(request, "audit_live.html")

    @router.post("/audit")
    @requires(Permission.LETTERS_DECIDE)
    async def start(request: Request) -> Response:
        """Start an audit, or show the running one."""
        auditor.start(actor(request))
        return redirect("/audit")

    return router
