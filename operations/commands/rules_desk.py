"""What the commands do with notification rules: in the database of a stack, or through its console."""

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Protocol

from operations.commands.operator import current_operator
from operations.commands.permission import require_permission
from operations.commands.remote.api import OperationsApi, RefusedError, open_api
from operations.notifications.editing import RuleEditor
from operations.notifications.records import NotificationRecords
from operations.notifications.rules import Rule, rule_from_json
from operations.reading.connection import open_mongodb
from operations.settings import RemoteStack, Stack
from shared.access.permissions import Permission
from shared.database import Database
from shared.services import CONSOLE


class RulesDesk(Protocol):
    """The rules of a stack. Raises UnreachableError."""

    async def rules(self) -> list[Rule]:
        """Return all rules by name."""

    async def add(self, rule: Rule, why: str) -> bool:
        """Add a rule; False if there is one of this name, or too many."""

    async def remove(self, name: str, why: str) -> bool:
        """Delete a rule; False if there is none of this name."""

    async def enable(self, name: str, enabled: bool, why: str) -> bool:
        """Turn a rule on or off; False if there is none of this name."""

    async def test(self, name: str) -> str | None:
        """Have a test message sent, and return its id; None if there is no rule of this name."""

    async def message(self, message_id: str) -> tuple[str, str]:
        """Return the status of a message, and what came of it in words."""


@contextlib.asynccontextmanager
async def open_rules(target: Stack | RemoteStack, purpose: str | None) -> AsyncIterator[RulesDesk]:
    """Connect to the stack; with a purpose, only if the key may write rules."""
    if purpose is not None:
        await require_permission(target, Permission.WEBHOOKS_WRITE, purpose)
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            yield _Remote(api)
        return
    async with open_mongodb(target.mongodb_url, purpose="the rules", name="ordersaga-notifications") as client:
        yield _Local(client[CONSOLE.database_in(target.database_prefix)])


class _Local:
    """A `RulesDesk` over MongoDB."""

    def __init__(self, database: Database) -> None:
        self._records = NotificationRecords(database)
        self._editor = RuleEditor(database)

    async def rules(self) -> list[Rule]:
        return await self._records.rules()

    async def add(self, rule: Rule, why: str) -> bool:
        return await self._editor.add(rule, by=current_operator(), why=why)

    async def remove(self, name: str, why: str) -> bool:
        return await self._editor.remove(name, by=current_operator(), why=why)

    async def enable(self, name: str, enabled: bool, why: str) -> bool:
        return await self._editor.enable(name, enabled, by=current_operator(), why=why)

    async def test(self, name: str) -> str | None:
        return await self._editor.test(name, by=current_operator())

    async def message(self, message_id: str) -> tuple[str, str]:
        found = await self._records.message(message_id) or {"status": "failed", "words": "It is not kept any more"}
        return str(found["status"]), str(found.get("words") or "")


class _Remote:
    """A `RulesDesk` over the operations API."""

    def __init__(self, api: OperationsApi) -> None:
        self._api = api

    async def rules(self) -> list[Rule]:
        return [rule_from_json(each) for each in (await self._api.get("notification-rules"))["items"]]

    async def add(self, rule: Rule, why: str) -> bool:
        body = rule.as_json() | {"reason": why}
        del body["enabled"]
        with _unless(HTTPStatus.CONFLICT) as refused:
            await self._api.post("notification-rules", body=body)
        return not refused

    async def remove(self, name: str, why: str) -> bool:
        with _unless(HTTPStatus.NOT_FOUND) as refused:
            await self._api.delete("notification-rules", name, reason=why)
        return not refused

    async def enable(self, name: str, enabled: bool, why: str) -> bool:
        with _unless(HTTPStatus.NOT_FOUND) as refused:
            await self._api.patch("notification-rules", name, body={"enabled": enabled, "reason": why})
        return not refused

    async def test(self, name: str) -> str | None:
        begun: dict[str, Any] = {}
        with _unless(HTTPStatus.NOT_FOUND):
            begun = await self._api.post("notification-rules", name, "test")
        return begun.get("id")

    async def message(self, message_id: str) -> tuple[str, str]:
        found = await self._api.get("notification-messages", message_id)
        return str(found["status"]), str(found["words"] or "")


@contextlib.contextmanager
def _unless(status: HTTPStatus) -> Any:
    """Yield a list, which has the refusal with this status afterwards if there was one."""
    refused: list[RefusedError] = []
    try:
        yield refused
    except RefusedError as error:
        if error.status != status:
            raise
        refused.append(error)
