"""Executes an operator's action through a service, and logs it twice: when it starts, and with its outcome.

Entries of the log are never changed, so there are two. If the console dies in between, only the first exists.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from operations.actions import STARTED, record_action
from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import Unavailable


class OperatorAction(NamedTuple):
    """An action of an operator, and the reason for it."""

    by: str
    why: str
    action: str
    subject: str


class ServiceCall(NamedTuple):
    """The request to a service that executes an action, once under its key if it has one."""

    method: str
    service: str
    path: str
    body: Mapping[str, Any] | None = None
    key: str | None = None


class ActionFailed(NamedTuple):
    """An action that was not executed, or may not have been; `status` is the HTTP status of the page that says so."""

    verdict: str
    why: str
    status: int

    @property
    def is_transient(self) -> bool:
        """Whether it may be done later: the service did not answer, or it has too much to do."""
        return self.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


class ActionDone(NamedTuple):
    """An action that the service has done; `repeated` if it had done so before, under the same key."""

    repeated: bool = False


async def execute(
    dependencies: ConsoleDependencies, action: OperatorAction, call: ServiceCall, *, done: str
) -> ActionFailed | None:
    """Execute an action; return None if the service did it, which the log records as `done`."""
    outcome = await execute_once(dependencies, action, call, done=done)
    return outcome if isinstance(outcome, ActionFailed) else None


async def execute_once(
    dependencies: ConsoleDependencies, action: OperatorAction, call: ServiceCall, *, done: str
) -> ActionDone | ActionFailed:
    """Execute an action, and say whether it was done now or before, under the same key."""
    await _log(dependencies, action, STARTED)
    response = await dependencies.services.act(*call)
    if isinstance(response, Unavailable):
        verdict = "Outcome unknown" if response.sent else "Not done"
        failed = ActionFailed(verdict, response.why, 503)
    elif not response.ok:
        failed = ActionFailed("Not done", response.detail, response.status)
    else:
        await _log(dependencies, action, f"{done} before: this was sent twice" if response.repeated else done)
        return ActionDone(response.repeated)
    await _log(dependencies, action, f"{failed.verdict[0].lower()}{failed.verdict[1:]}: {failed.why}")
    return failed


async def _log(dependencies: ConsoleDependencies, action: OperatorAction, outcome: str) -> None:
    await record_action(dependencies.operations, **action._asdict(), outcome=outcome)
