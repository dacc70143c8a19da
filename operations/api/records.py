"""The routes about what people did: the log of actions, and the acts that wait for a second person."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from operations.actions import list_actions
from operations.api.routes import Words, read_skip, staff_router, write_skip
from operations.approvals.records import ApprovalRecords
from operations.console.dependencies import ConsoleDependencies
from operations.sign_in.person import person_of
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import to_rfc3339
from shared.database import Document
from shared.http import View, json_response, not_found
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, wrong_cursor


class ActionView(View):
    """An entry of the log of actions."""

    id: str
    at: datetime
    by: str
    why: str
    action: str = Field(examples=["order.cancel"])
    subject: str = Field(description="the id of the order, letter, group or package that it concerns")
    outcome: str


class ActionPage(View):
    """A page of the log, the newest first."""

    items: list[ActionView]
    next_cursor: str | None


class ApprovalView(View):
    """An act that needs a second person."""

    id: str
    at: datetime
    expires_at: datetime
    by: str
    why: str
    action: str
    subject: str
    status: str
    decided_by: str | None
    decided_at: datetime | None
    outcome: str | None = Field(description="what came of it, once it is over")


class ApprovalPage(View):
    """A page of acts that need a second person, and the number on all pages."""

    items: list[ApprovalView]
    next_cursor: str | None
    total: int


def create_records(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router, approvals = staff_router("actions"), ApprovalRecords(dependencies.operations, dependencies.clock)

    @router.get("/actions", response_model=ActionPage)
    @requires(Permission.LETTERS_READ)
    async def list_of_actions(
        subject: Words = None, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None
    ) -> Response:
        """Who did what, when and why, the newest first; of one order, letter, group or package with `subject`."""
        try:
            page = await list_actions(dependencies.operations, subject=subject, limit=limit, cursor=cursor)
        except ValueError:
            raise wrong_cursor() from None
        return json_response({"items": [_action(entry) for entry in page.items], "nextCursor": page.next_cursor})

    @router.get("/approvals", response_model=ApprovalPage)
    @requires(Permission.ORDERS_READ)
    async def list_approvals(limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None) -> Response:
        """Acts that need a second person, the newest first.

        A person who is signed in to the console decides about them: a key does not say who uses it.
        """
        skip = read_skip(cursor)
        found, total = await approvals.newest(limit, skip), await approvals.count()
        following = write_skip(skip + len(found), total)
        return json_response({"items": [_approval(each) for each in found], "nextCursor": following, "total": total})

    @router.get("/approvals/{approval_id}", response_model=ApprovalView)
    @requires(Permission.ORDERS_READ)
    async def get_approval(approval_id: str) -> Response:
        """An act that needs a second person, and what came of it."""
        record = await approvals.find(approval_id)
        if record is None:
            raise not_found(f"The request {approval_id}")
        return json_response(_approval(record))

    return router


def _action(entry: Document) -> dict[str, Any]:
    shown = {name: entry[name] for name in ("by", "why", "action", "subject", "outcome")}
    return {"id": entry["_id"], "at": to_rfc3339(entry["at"]), **shown}


def _approval(record: Document) -> dict[str, Any]:
    decided = record.get("decidedBy")
    return {
        "id": record["_id"],
        "at": to_rfc3339(record["at"]),
        "expiresAt": to_rfc3339(record["expiresAt"]),
        "by": person_of(record["by"]).label,
        "why": record["why"],
        "action": record["action"],
        "subject": record["subject"],
        "status": record["status"],
        "decidedBy": person_of(decided).label if decided else None,
        "decidedAt": to_rfc3339(record["decidedAt"]) if decided else None,
        "outcome": record.get("outcome"),
    }
