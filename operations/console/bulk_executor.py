"""Takes an action on many orders, one order at a time: of the console in the background, of a command until it is over.

Killed at any step and run again, it skips no order and acts on none twice: `operations.order_actions.bulk` says why.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import structlog
from pymongo.errors import PyMongoError

from operations.approvals.records import ApprovalRecords
from operations.console.dependencies import ConsoleDependencies
from operations.console.operator_actions import OperatorAction, ServiceCall, execute
from operations.console.upstream import acting_for, path
from operations.errors import UnreachableError
from operations.order_actions.actions import NUDGE, ORDER_ACTIONS, OrderAction
from operations.order_actions.bulk import BY_CONSOLE, DONE, FAILED, WAITING, BulkActions
from operations.reading.connection import open_bus
from operations.recovery.nudging import NotNudgeableError, nudge
from operations.sign_in.person import person_of
from shared.background import run_periodically
from shared.bus.backoff import Backoff
from shared.bus.failures import traceback_text
from shared.bus.publisher import Publisher
from shared.database import Document, is_refusal, translate_error
from shared.errors import TransientError
from shared.failpoints import BULK_ACTED, BULK_CLAIMED, BULK_NOTED, BULK_RECORDED, Failpoint, nothing_fails

DEFAULT_RATE = 10.0
"""Orders per second: below what services allow a key by default, and slow enough to stop by hand."""

PATIENCE_SECONDS = 10.0
"""For how long an order is tried while a service is away or has too much to do."""

LOOK_SECONDS = 2.0
"""How often a console looks for actions that it is to take, or to continue."""

POLL_SECONDS = 0.5
"""The pause while another process has the last orders."""

NAME = "ordersaga-orders"
ACCEPTED = "accepted"

Progress = Callable[[str], None]
"""Receives the outcome of each order."""

Result = tuple[str, str]
"""The outcome, and what there is to say about it."""

_log = structlog.get_logger(__name__)


class BulkExecutor:
    """Takes actions on many orders; any number of processes may do so at once."""

    def __init__(self, dependencies: ConsoleDependencies, failpoint: Failpoint = nothing_fails) -> None:
        self._dependencies = dependencies
        self._bulk = BulkActions(dependencies.operations, dependencies.clock)
        self._approvals = ApprovalRecords(dependencies.operations, dependencies.clock)
        self._failpoint = failpoint

    async def run_all(self) -> None:
        """Take the actions that people asked for in the console, until cancelled."""
        await run_periodically(self.work, every=LOOK_SECONDS, name="actions on many orders")

    async def work(self) -> bool:
        """Take every unfinished action of the console; return False: there is nothing left for now."""
        for bulk in await self._bulk.unfinished(BY_CONSOLE):
            with acting_for(person_of(bulk["by"]).principal()):
                try:
                    await self.run(bulk)
                except UnreachableError as error:
                    _log.warning("an action on many orders has to wait", bulk=bulk["_id"], reason=str(error))
        return False

    async def run(self, bulk: Document, on_progress: Progress = lambda _: None) -> None:
        """Act on every order that has no result yet, at the rate of the action; return once all have one.

        Raises UnreachableError when a server does not answer for a while: run it again then.
        """
        due, item = time.monotonic(), None
        try:
            async with self._publisher(bulk) as publisher:
                while not await self._bulk.end_if_done(bulk["_id"]):
                    item = await self._bulk.claim(bulk["_id"])
                    if item is None:
                        await asyncio.sleep(POLL_SECONDS)
                        continue
                    on_progress(await self._take(bulk, item, publisher))
                    # What waiting took is not made up for by going faster.
                    due = max(due + 1 / bulk["rate"], time.monotonic())
                    await asyncio.sleep(due - time.monotonic())
        except (UnreachableError, asyncio.CancelledError):
            with contextlib.suppress(PyMongoError):
                await self._bulk.leave(bulk["_id"], item)
            raise

    @contextlib.asynccontextmanager
    async def _publisher(self, bulk: Document) -> AsyncIterator[Publisher | None]:
        """Connect to the broker if the action needs it."""
        if bulk["action"] != NUDGE:
            yield None
            return
        async with open_bus(self._dependencies.amqp_url, None, name=NAME) as bus:
            yield Publisher(bus)

    async def _take(self, bulk: Document, item: Document, publisher: Publisher | None) -> str:
        """Act on an order that is claimed, record the result, and return the outcome."""
        self._failpoint(BULK_CLAIMED)
        outcome, detail = await self._act_or_explain(bulk, item, publisher)
        self._failpoint(BULK_ACTED)
        await self._bulk.record(item, outcome, detail)
        self._failpoint(BULK_RECORDED)
        return outcome

    async def _act_or_explain(self, bulk: Document, item: Document, publisher: Publisher | None) -> Result:
        """Act on an order; an unexpected error is the result of this order, and holds up no other.

        Lets out what is no fault of the order: a server that is away, or refuses this process.
        """
        try:
            return await self._act(bulk, item, publisher)
        except (UnreachableError, TransientError, TimeoutError):
            raise
        except Exception as error:
            if is_refusal(error) or isinstance(translate_error(error), TransientError):
                raise
            trace = traceback_text(error)  # bounded: an error may contain whole documents
            _log.error("an order could not be acted on", bulk=bulk["_id"], order_id=item["orderId"], exception=trace)
            return FAILED, f"unexpected: {type(error).__name__}; the log of this process has the traceback"

    async def _act(self, bulk: Document, item: Document, publisher: Publisher | None) -> Result:
        action, order_id = ORDER_ACTIONS[bulk["action"]], item["orderId"]
        operator = OperatorAction(person_of(bulk["by"]).label, bulk["why"], action.log_name, order_id)
        if publisher is not None:
            return await self._nudge(publisher, operator)
        order = await self._order(order_id)
        if order is None:
            return FAILED, "there is no such order"
        if "before" not in item:
            item["before"] = _times_taken(order, action)
            await self._bulk.note(item, item["before"])
        elif _times_taken(order, action) > item["before"]:
            return DONE, ACCEPTED
        self._failpoint(BULK_NOTED)
        if action.moves_money and self._dependencies.approval_policy.order_needs(order.get("totalAmount")):
            return await self._ask(bulk, operator)
        return await self._execute(action, operator, item["before"])

    async def _nudge(self, publisher: Publisher, operator: OperatorAction) -> Result:
        dependencies = self._dependencies
        try:
            sent = await nudge(
                dependencies.client,
                dependencies.prefix,
                publisher,
                operator.subject,
                by=operator.by,
                why=operator.why,
            )
        except NotNudgeableError as error:
            return FAILED, str(error)
        return DONE, f"sent again: {', '.join(sent)}"

    async def _ask(self, bulk: Document, operator: OperatorAction) -> Result:
        """Record the act as one that needs a second person, once."""
        parameters = {"bulk": bulk["_id"]}
        asked = await self._approvals.find_asked(operator.subject, parameters)
        approval = (
            asked["_id"]
            if asked is not None
            else await self._approvals.ask(
                person_of(bulk["by"]),
                action=operator.action,
                subject=operator.subject,
                why=operator.why,
                parameters=parameters,
            )
        )
        return WAITING, f"waits for a second person to approve request {approval}"

    async def _execute(self, action: OrderAction, operator: OperatorAction, before: int) -> Result:
        """Have the order service act, again while it does not answer, but not for ever. Raises UnreachableError."""
        address, body = path("orders", operator.subject, action.name), action.body(operator.why)
        backoff, give_up_at = Backoff(), time.monotonic() + PATIENCE_SECONDS
        while True:
            failed = await execute(
                self._dependencies, operator, ServiceCall("POST", "order", address, body), done=ACCEPTED
            )
            if failed is None:
                return DONE, ACCEPTED
            if _times_taken(await self._order(operator.subject) or {}, action) > before:
                return DONE, ACCEPTED  # only the answer was lost, of this attempt or of an earlier one
            if not failed.is_transient:
                return FAILED, failed.why
            if time.monotonic() > give_up_at:
                raise UnreachableError(failed.why)
            await asyncio.sleep(backoff.next())

    async def _order(self, order_id: str) -> Document | None:
        fields = {"status": True, "totalAmount": True, "history.event": True}
        return await self._dependencies.orders.find_one({"_id": order_id}, fields)


def _times_taken(order: Document, action: OrderAction) -> int:
    """Return how often the order's history has the action."""
    return sum(entry.get("event") == action.event for entry in order.get("history") or ())
