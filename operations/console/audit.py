"""The audit page: runs an audit in the background, one at a time, and shows how far it is and what it found."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import structlog
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from operations.actions import record_action
from operations.audit import audit
from operations.audit.report import INVARIANTS, Report
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import OptionalName, named, remember
from operations.console.pages import Pages
from operations.console.upstream import Missing, attempt

MOST_SHOWN = 200
LONGEST_SECONDS = 3600.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Run:
    """One audit: `report` is None while it runs, and Missing where it could not be done."""

    by: str
    began_at: datetime
    judged: int = 0
    ended_at: datetime | None = None
    report: Report | Missing | None = None


@dataclass(slots=True)
class Auditor:
    """Runs audits, never two at a time, and keeps the last one."""

    desk: ConsoleDependencies
    last: Run | None = None
    _task: "asyncio.Task[None] | None" = field(default=None)

    @property
    def busy(self) -> bool:
        """Whether an audit runs."""
        return self._task is not None and not self._task.done()

    def start(self, by: str) -> bool:
        """Start an audit; False if one runs already."""
        if self.busy:
            return False
        self.last = run = Run(by, self.desk.clock())
        self._task = asyncio.create_task(self._carry_out(run), name="audit")
        return True

    async def _carry_out(self, run: Run) -> None:
        def count(judged: int) -> None:
            run.judged += judged

        desk = self.desk
        try:
            run.report = await attempt(
                audit(desk.mongodb_url, desk.amqp_url, desk.prefix, on_progress=count), "The audit", LONGEST_SECONDS
            )
        except Exception as error:  # noqa: BLE001 - shown on the page; nobody else hears of a task's end
            _log.exception("an audit failed")
            run.report = Missing(f"It failed: {type(error).__name__}: {error}")
        finally:
            run.ended_at = desk.clock()
        await attempt(self._write_down(run), "MongoDB")

    async def _write_down(self, run: Run) -> None:
        match run.report:
            case Report() as report:
                found = len(report.violations) + report.unlisted
                outcome = "the books balance" if report.ok else f"{found} violations"
            case Missing(why):
                outcome = f"not done: {why}"
            case None:
                outcome = "not done"
        await record_action(
            self.desk.operations,
            by=run.by,
            why="to see whether the books balance",
            action="audit",
            subject="all",
            outcome=outcome,
        )


def create_auditing(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The page, its part that renews itself, and the button."""
    router, auditor = pages.router(), Auditor(desk)

    async def show(request: Request, template: str) -> Response:
        return pages.show(
            request,
            template,
            run=auditor.last,
            busy=auditor.busy,
            invariants=INVARIANTS,
            most=MOST_SHOWN,
        )

    @router.get("/audit")
    async def page(request: Request) -> Response:
        return await show(request, "audit.html")

    @router.get("/audit/result")
    async def live(request: Request) -> Response:
        return await show(request, "audit_live.html")

    @router.post("/audit")
    async def start(request: Request, by: Annotated[OptionalName, Form()] = "") -> Response:
        """Start an audit, or show the one that runs."""
        operator = named(request, desk, by)
        auditor.start(operator)
        return remember(request, desk, RedirectResponse("/audit", 303), operator)

    return router
