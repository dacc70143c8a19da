"""The audit page: the last audit and those before it, and a button that runs one in the background."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from operations.actions import record_action
from operations.audit.report import INVARIANTS, RECORD_NAMES
from operations.audit.runs import OK, VIOLATIONS, violations_of
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor, redirect
from operations.console.pages import Pages
from operations.console.upstream import attempt
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import not_found
from shared.paging import wrong_cursor

PAGE = 20


class Auditor:
    """Runs the audits that people ask for, one at a time over all processes, and logs who asked."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies

    async def start(self, by: str) -> str | None:
        """Start an audit and return its id; None if one is under way. Lets the driver's errors out."""
        run_id = await self._dependencies.audit_runs.begin(by)
        if run_id is not None:
            self._dependencies.run_in_background(self._run_audit(run_id, by), "audit")
        return run_id

    async def _run_audit(self, run_id: str, by: str) -> None:
        dependencies = self._dependencies
        await dependencies.audits.run(run_id)
        run = await attempt(dependencies.audit_runs.find(run_id), "MongoDB")
        logged = {"by": by, "why": "to check that the books balance", "action": "audit", "subject": "all"}
        outcome = outcome_of(run) if isinstance(run, dict) else "not known"
        await attempt(record_action(dependencies.operations, **logged, outcome=outcome), "MongoDB")


def outcome_of(run: Document) -> str:
    """Return the result of an audit in a few words."""
    if run["status"] == OK:
        return "the books balance"
    if run["status"] == VIOLATIONS:
        return f"{run['found']:,} violation{'s' if run['found'] != 1 else ''}"
    return f"{run['status']}: {run['why']}" if run.get("why") else str(run["status"])


def create_audit(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page, its live part, the result of each audit, and the button."""
    router, auditor, runs = pages.router(), Auditor(dependencies), dependencies.audit_runs

    async def show(request: Request, template: str, cursor: str | None) -> Response:
        current = await attempt(runs.current(), "MongoDB")
        last = await attempt(runs.last(), "MongoDB")
        try:
            history = await attempt(runs.page(limit=PAGE, cursor=cursor), "MongoDB")
        except ValueError:
            raise wrong_cursor() from None
        return pages.show(request, template, current=current, history=history, cursor=cursor, **_result_of(last))

    @router.get("/audit")
    @requires(Permission.LETTERS_READ)
    async def page(request: Request, cursor: Annotated[str | None, Query(max_length=1000)] = None) -> Response:
        return await show(request, "audit.html", cursor)

    @router.get("/audit/result")
    @requires(Permission.LETTERS_READ)
    async def live(request: Request) -> Response:
        return await show(request, "audit_live.html", None)

    @router.get("/audit/runs/{run_id}")
    @requires(Permission.LETTERS_READ)
    async def result(request: Request, run_id: str) -> Response:
        run = await runs.find(run_id)
        if run is None:
            raise not_found(f"The audit {run_id[:100]}")
        return pages.show(request, "audit_run.html", **_result_of(run))

    @router.post("/audit")
    @requires(Permission.LETTERS_DECIDE)
    async def start(request: Request) -> Response:
        """Start an audit, or show the running one."""
        await auditor.start(actor(request))
        return redirect("/audit")

    return router


def _result_of(run: object) -> dict[str, object]:
    """Return what the templates need to show a result; `run` is None without one."""
    violations = violations_of(run) if isinstance(run, dict) else []
    described = {"invariants": INVARIANTS, "record_names": RECORD_NAMES, "outcome": outcome_of}
    return {"run": run, "violations": violations, **described}
