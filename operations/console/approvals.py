"""Acts that need a second person: the page that lists them, the decision, and the execution."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from operations.accounts.correction import Keep
from operations.accounts.repair import repair
from operations.accounts.statements import AccountStatements
from operations.actions import ORDER_RELEASE
from operations.approvals.policy import DISCARD, EDIT, NEEDED, REFUND_PART, REPAIR, REPLAY
from operations.approvals.records import DONE, NOT_DONE, UNKNOWN, ApprovalRecords, NotDecidableError
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import redirect, signed_in
from operations.console.lists import page_links
from operations.console.operator_actions import OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.upstream import acting_for, path
from operations.dead_letters.filters import Filters
from operations.dead_letters.patching import Patch
from operations.dead_letters.replays import NotPossibleError
from operations.dead_letters.service import DeadLetterService
from operations.errors import UnreachableError
from operations.sign_in.person import person_of
from operations.timeline.release import SENT, NotReleasableError, release_held
from shared.access.middleware import caller_of, requires
from shared.access.permissions import Permission
from shared.background import run_periodically
from shared.database import Document
from shared.http import ProblemError, conflict, not_found

PAGE = 50
LOOK_SECONDS = 5.0
"""How often a process looks for approved acts that another one left behind."""

APPROVALS = "/approvals"


async def ask_for_approval(
    request: Request,
    dependencies: ConsoleDependencies,
    *,
    action: str,
    subject: str,
    why: str,
    parameters: Document | None = None,
) -> Response:
    """Record the act of a request as one that needs a second person, and show the list of them."""
    records = ApprovalRecords(dependencies.operations, dependencies.clock)
    await records.ask(signed_in(request), action=action, subject=subject, why=why, parameters=parameters or {})
    return redirect(APPROVALS)


def create_approvals(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the list and of the decisions."""
    router, records = pages.router(), ApprovalRecords(dependencies.operations, dependencies.clock)
    executor = Executor(dependencies)

    @router.get(APPROVALS)
    @requires(Permission.ORDERS_READ)
    async def approvals(request: Request, page: Annotated[int, Query(ge=1, le=10_000)] = 1) -> Response:
        found = await records.newest(PAGE, (page - 1) * PAGE)
        links = page_links(APPROVALS, {}, page=page, size=PAGE, shown=len(found), total=await records.count())
        caller, letters = caller_of(request.scope), {}
        if caller is not None and caller.may(Permission.LETTERS_READ):
            letters = await _letters_of(DeadLetterService(dependencies.operations), found)
        decidable = {r["_id"] for r in found if r["status"] == "pending" and _may_decide(request, r)}
        return pages.show(
            request,
            "approvals.html",
            found=found,
            links=links,
            label=_label,
            letters=letters,
            decidable=decidable,
            own=caller and caller.id,
        )

    @router.post("/approvals/{approval_id}/approve")
    @requires(Permission.ORDERS_READ)
    async def approve(request: Request, approval_id: str) -> Response:
        await decide(request, approval_id, approve=True)
        await executor.work()
        return redirect(APPROVALS)

    @router.post("/approvals/{approval_id}/reject")
    @requires(Permission.ORDERS_READ)
    async def reject(request: Request, approval_id: str) -> Response:
        await decide(request, approval_id, approve=False)
        return redirect(APPROVALS)

    async def decide(request: Request, approval_id: str, *, approve: bool) -> None:
        record = await records.find(approval_id)
        if record is None:
            raise not_found(f"The request {approval_id}")
        _check_decider(request, record)
        try:
            await records.decide(approval_id, signed_in(request), approve=approve)
        except NotDecidableError as error:
            raise conflict(f"The request cannot be decided: {error}") from None

    return router


async def _letters_of(service: DeadLetterService, asked: Sequence[Document]) -> dict[str, tuple[str, int | None]]:
    """Return, by the ids of requests about letters, which ones in words, and how many now while that is undecided."""
    found: dict[str, tuple[str, int | None]] = {}
    for request in asked:
        if (stored := request["parameters"].get("filters")) is not None:
            filters = Filters.from_document(stored)
            count = service.count_decidable if request["action"] == DISCARD else service.count_replayable
            number = await count(filters) if request["status"] == "pending" else None
            found[request["_id"]] = filters.in_words(), number
    return found


def _label(document: Document) -> str:
    return person_of(document).label


def _check_decider(request: Request, record: Document) -> None:
    """Raise the 403 problem unless a signed-in person with the permission of the act decides."""
    caller, needed = caller_of(request.scope), NEEDED[record["action"]]
    if caller is None or caller.method != "session":
        detail = "Only a person who is signed in can decide: a key does not say who uses it"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail)
    if not caller.may(needed):
        raise ProblemError(HTTPStatus.FORBIDDEN, f"This needs {needed}, which {caller.name} does not have")


def _may_decide(request: Request, record: Document) -> bool:
    caller = caller_of(request.scope)
    if caller is None or caller.id == record["by"]["subject"]:
        return False
    return caller.method == "session" and caller.may(NEEDED[record["action"]])


class Executor:
    """Executes approved acts, each once, for the person who asked."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies
        self._records = ApprovalRecords(dependencies.operations, dependencies.clock)
        self._letters = DeadLetterService(dependencies.operations)

    async def run(self) -> None:
        """Publish the policy, then execute what other processes left behind, until cancelled."""
        published = asyncio.Event()

        async def work() -> bool:
            if not published.is_set():
                await self._records.publish(self._dependencies.approval_policy)
                published.set()
            await self._records.give_up_lost()
            return await self.work()

        await run_periodically(work, every=LOOK_SECONDS, name="approvals")

    async def work(self) -> bool:
        """Execute one approved act; return False if there is none."""
        record = await self._records.claim()
        if record is None:
            return False
        perform: Callable[[Document, str], Awaitable[tuple[str, str]]] = {
            REPLAY: self._replay,
            DISCARD: self._discard,
            EDIT: self._edit,
            REPAIR: self._repair,
            REFUND_PART: self._refund_part,
            ORDER_RELEASE: self._release,
        }.get(record["action"], self._act_on_order)
        by = f"{_label(record['by'])}, approved by {_label(record['decidedBy'])}"
        with acting_for(person_of(record["by"]).principal()):
            try:
                status, outcome = await perform(record, by)
            except (NotPossibleError, NotReleasableError, UnreachableError) as error:
                status, outcome = NOT_DONE, str(error)
        await self._records.finish(record, status, outcome)
        return True

    async def _act_on_order(self, record: Document, by: str) -> tuple[str, str]:
        name = record["action"].removeprefix("order.")
        action = OperatorAction(by, record["why"], record["action"], record["subject"])
        body = {"reason": record["why"]} if name == "cancel" else None
        address = path("orders", record["subject"], name)
        failed = await execute(self._dependencies, action, ServiceCall("POST", "order", address, body), done="accepted")
        if failed is None:
            return DONE, "accepted"
        return (UNKNOWN if failed.verdict == "Outcome unknown" else NOT_DONE), failed.why

    async def _refund_part(self, record: Document, by: str) -> tuple[str, str]:
        action = OperatorAction(by, record["why"], record["action"], record["subject"])
        address, body = path("orders", record["subject"], "refunds"), record["parameters"]["refund"]
        failed = await execute(
            self._dependencies, action, ServiceCall("POST", "order", address, body, record["_id"]), done="accepted"
        )
        if failed is None:
            return DONE, "accepted"
        return (UNKNOWN if failed.verdict == "Outcome unknown" else NOT_DONE), failed.why

    async def _release(self, record: Document, by: str) -> tuple[str, str]:
        dependencies = self._dependencies
        await release_held(
            dependencies.client, dependencies.prefix, dependencies.amqp_url, record["subject"], by=by, why=record["why"]
        )
        return DONE, SENT

    async def _replay(self, record: Document, by: str) -> tuple[str, str]:
        filters = Filters.from_document(record["parameters"]["filters"])
        rate, careful = record["parameters"]["rate"], record["parameters"].get("careful", False)
        replay = await self._letters.start_replay(filters, by=by, why=record["why"], rate=rate, careful=careful)
        return DONE, f"replay {replay} has begun"

    async def _discard(self, record: Document, by: str) -> tuple[str, str]:
        filters = Filters.from_document(record["parameters"]["filters"])
        done = await self._letters.discard(filters, by=by, why=record["why"])
        return DONE, f"{done.number} discarded{done.after}"

    async def _edit(self, record: Document, by: str) -> tuple[str, str]:
        asked = record["parameters"]
        filters, patch = Filters.from_document(asked["filters"]), Patch(**asked["patch"])
        replay = await self._letters.start_edit(
            filters, patch, by=by, why=record["why"], rate=asked["rate"], careful=asked["careful"]
        )
        return DONE, f"replay {replay} has begun"

    async def _repair(self, record: Document, by: str) -> tuple[str, str]:
        client, prefix = self._dependencies.client, self._dependencies.prefix
        keep, reason = Keep(record["parameters"]["keep"]), f"{record['why']} ({by})"
        account = record["parameters"]["account"]
        differing = [b.account_id async for b in AccountStatements(client, prefix).differing(account)]
        repairs = [await repair(client, prefix, account_id, keep, reason) for account_id in differing]
        refused = [found.refused for found in repairs if found is not None and found.refused]
        return (NOT_DONE, "; ".join(refused)) if refused else (DONE, f"{len(repairs)} corrected")
