"""Acts on notification rules, each in the log of actions: for the console, the operations API and commands."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operations.actions import record_action
from operations.notifications.records import NotificationRecords
from operations.notifications.rules import Rule
from shared.database import Database


class RuleEditor:
    """Changes the rules of a stack. Lets the driver's errors out."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = NotificationRecords(database)

    async def add(self, rule: Rule, *, by: str, why: str) -> bool:
        """Add a rule; False if there is one of this name, or too many."""
        added = await self._records.add(rule)
        if added:
            await self._log("add", rule.name, by, why, rule.describe(addresses=False))
        return added

    async def change(self, name: str, changes: Mapping[str, Any], *, by: str, why: str) -> Rule | None:
        """Set these fields of a rule, and return it; None if there is none of this name."""
        rule = await self._records.change(name, changes)
        if rule is not None:
            state = "" if rule.enabled else ", off"
            await self._log("change", name, by, why, rule.describe(addresses=False) + state)
        return rule

    async def enable(self, name: str, enabled: bool, *, by: str, why: str) -> bool:
        """Turn a rule on or off; False if there is none of this name."""
        found = await self._records.enable(name, enabled)
        if found:
            await self._log("enable" if enabled else "disable", name, by, why, "on" if enabled else "off")
        return found

    async def remove(self, name: str, *, by: str, why: str) -> bool:
        """Delete a rule; False if there is none of this name."""
        rule = await self._records.find(name)
        if rule is None or not await self._records.remove(name):
            return False
        await self._log("remove", name, by, why, rule.describe(addresses=False))
        return True

    async def test(self, name: str, *, by: str) -> str | None:
        """Have a test message of a rule sent, and return its id; None if there is no rule of this name."""
        rule = await self._records.find(name)
        if rule is None:
            return None
        message = await self._records.open_test(rule)
        await self._log("test", name, by, "to test the rule", f"message {message}")
        return message

    async def _log(self, action: str, name: str, by: str, why: str, outcome: str) -> None:
        logged = {"by": by, "why": why, "action": f"notifications.{action}", "subject": name}
        await record_action(self._database, **logged, outcome=outcome)


def changed(rule: Rule, changes: dict[str, Any]) -> Rule:
    """Return the rule with these fields of its JSON document replaced."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    return replace(rule, **given)
