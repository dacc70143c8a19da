"""The routes about what happened to the stack itself, and about audits."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field

from operations.api.routes import ACCEPTED, at, staff_router
from operations.audit.runs import run_as_json, violations_of
from operations.console.audit import Auditor
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.incidents.incident import KINDS, SEVERITIES, Incident
from operations.incidents.records import IncidentFilter, IncidentRecords
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.http import View, conflict, invalid, json_response, not_found
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, wrong_cursor
from shared.validation import Moment

Chosen = Annotated[list[str] | None, Query(max_length=50, description="Once for each that is wanted")]


class IncidentView(View):
    """Something that happened to the stack."""

    id: str
    at: datetime
    kind: str = Field(examples=["process-down"])
    severity: str = Field(description="critical, warning or info")
    text: str
    subject: str
    service: str | None
    link: str | None = Field(description="the page of the console that it is about")


class IncidentPage(View):
    """A page of incidents, the newest first, and the number on all pages."""

    items: list[IncidentView]
    next_cursor: str | None
    total: int


class AuditView(View):
    """An audit; without a result while it is under way."""

    id: str
    started_at: datetime
    ended_at: datetime | None
    by: str
    status: str = Field(description="running, ok, violations, not done or interrupted")
    why: str | None = Field(description="why there is no result")
    found: int | None = Field(description="the number of violations")
    checked: dict[str, int] | None = Field(description="the number of records, by kind")


class FixView(View):
    """How to fix a violation."""

    text: str
    command: str | None
    page: str = Field(description="in the documentation")


class ViolationView(View):
    """A broken invariant, and how to fix it; one more field names what it is about, such as `order`."""

    model_config = ConfigDict(extra="allow")

    invariant: int
    kind: str
    found: str
    expected: str
    fix: FixView


class AuditDetail(AuditView):
    """An audit with the violations that it lists."""

    violations: list[ViolationView]
    information: dict[str, Any] | None = Field(description="figures about the stack, such as the orders in flight")


class AuditPage(View):
    """A page of audits, the newest first, and the number on all pages."""

    items: list[AuditView]
    next_cursor: str | None
    total: int


def create_stack(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router = staff_router("state")
    _add_incidents(router, dependencies)
    _add_audits(router, dependencies)
    return router


def _add_incidents(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    records = IncidentRecords(dependencies.operations)

    @router.get("/incidents", response_model=IncidentPage)
    @requires(Permission.LETTERS_READ)
    async def list_incidents(
        kind: Chosen = None,
        severity: Chosen = None,
        service: Chosen = None,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """What happened to the stack itself, the newest first."""
        for name, values, allowed in (("kind", kind, KINDS), ("severity", severity, SEVERITIES)):
            if unknown := [value for value in values or () if value not in allowed]:
                raise invalid((name, f"is {unknown[0][:100]!r}, must be one of {', '.join(allowed)}"))
        wanted = IncidentFilter(kind or (), severity or (), service or (), since, until)
        try:
            page = await records.page(wanted, limit=limit, cursor=cursor)
        except ValueError:
            raise wrong_cursor() from None
        items = [_incident(incident) for incident in page.items]
        return json_response({"items": items, "nextCursor": page.next_cursor, "total": page.total})


def _add_audits(router: APIRouter, dependencies: ConsoleDependencies) -> None:
    runs, auditor = dependencies.audit_runs, Auditor(dependencies)

    @router.get("/audits", response_model=AuditPage)
    @requires(Permission.LETTERS_READ)
    async def list_audits(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Audits, those that people asked for and those of the schedule, the newest first."""
        try:
            page = await runs.page(limit=limit, cursor=cursor)
        except ValueError:
            raise wrong_cursor() from None
        items = [run_as_json(run) for run in page.items]
        return json_response({"items": items, "nextCursor": page.next_cursor, "total": page.total})

    @router.get("/audits/{audit_id}", response_model=AuditDetail)
    @requires(Permission.LETTERS_READ)
    async def get_audit(audit_id: str) -> Response:
        """An audit with its violations, each with how to fix it."""
        run = await runs.find(audit_id)
        if run is None:
            raise not_found(f"The audit {audit_id[:100]}")
        shown = {"violations": [each.as_json() for each in violations_of(run)], "information": run.get("information")}
        return json_response(run_as_json(run) | shown)

    @router.post("/audits", status_code=202, response_model=AuditView, responses=ACCEPTED | documented(409))
    @requires(Permission.LETTERS_DECIDE)
    async def start_audit(request: Request) -> Response:
        """Check in the background that the books balance; one audit at a time."""
        run_id = await auditor.start(actor(request))
        if run_id is None:
            raise conflict("An audit is under way")
        run = await runs.find(run_id)
        return json_response(run_as_json(run or {}), HTTPStatus.ACCEPTED, at("audits", run_id))


def _incident(incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.id,
        "at": to_rfc3339(incident.at),
        "kind": incident.kind,
        "severity": incident.severity,
        "text": incident.text,
        "subject": incident.subject,
        "service": incident.service,
        "link": incident.link,
    }
