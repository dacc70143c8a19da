"""Has a service do what an operator asks for, and writes that down: before it is asked, and what came of it after.

Entries are never changed, so there are two. The first alone is left where the console ends in between.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from operations.actions import record_action
from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import Missing

BEGUN = "begun"


class OperatorAction(NamedTuple):
    """What an operator wants done, and why."""

    by: str
    why: str
    action: str
    subject: str


class ActionFailed(NamedTuple):
    """Why it is not, or may not be done; `status` is the page's that says so."""

    verdict: str
    why: str
    status: int


async def execute(
    desk: ConsoleDependencies,
    deed: OperatorAction,
    method: str,
    service: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    done: str,
) -> ActionFailed | None:
    """Carry a deed out; None where the service did it, for which the log says `done`."""
    await _write(desk, deed, BEGUN)
    answer = await desk.services.act(method, service, path, body)
    if isinstance(answer, Missing):
        verdict = "Not known whether it was done" if answer.sent else "Not done"
        trouble = ActionFailed(verdict, answer.why, 503)
    elif not answer.ok:
        trouble = ActionFailed("Not done", answer.detail, answer.status)
    else:
        await _write(desk, deed, done)
        return None
    await _write(desk, deed, f"{trouble.verdict[0].lower()}{trouble.verdict[1:]}: {trouble.why}")
    return trouble


async def _write(desk: ConsoleDependencies, deed: OperatorAction, outcome: str) -> None:
    await record_action(desk.operations, **deed._asdict(), outcome=outcome)
