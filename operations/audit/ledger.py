"""One pass over the ledger of funds: its violations, and the number of its records."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from operations.audit import funds
from operations.audit.journal import Journal
from operations.audit.report import Violation
from operations.reading.chart_of_accounts import as_number, is_system


@dataclass(slots=True)
class LedgerPass:
    """One pass: the records counted so far, and the balances of the system's accounts, in minor units."""

    journal: Journal
    counted: Counter[str] = field(default_factory=Counter)
    system_balances: dict[str, int] = field(default_factory=dict)

    async def violations(self) -> AsyncIterator[Violation]:
        """Yield every violation as it is found."""
        for part in (self._accounts, self._entries, self._payments, self._transfers, self._orders):
            async for violation in part():
                yield violation

    def system_balances_as_json(self) -> dict[str, int | float | None]:
        """Return the balances of the system's accounts, in major units."""
        return {account: as_number(amount) for account, amount in sorted(self.system_balances.items())}

    async def _accounts(self) -> AsyncIterator[Violation]:
        async for balance in self.journal.balances():
            self.counted["accounts"] += balance.account is not None
            if is_system(balance.account_id):
                self.system_balances[balance.account_id] = balance.recomputed
            for violation in funds.judge_account(balance):
                yield violation

    async def _entries(self) -> AsyncIterator[Violation]:
        async for entries in self.journal.entries():
            self.counted["entries"] += len(entries)
            for records in entries:
                for violation in funds.judge_entry(records):
                    yield violation
        for found in await self.journal.reversed_twice():
            yield funds.reversed_twice(*found)

    async def _payments(self) -> AsyncIterator[Violation]:
        async for payments in self.journal.payments():
            self.counted["fundPayments"] += len(payments)
            for payment, entries in payments:
                for violation in funds.judge_payment(payment, entries):
                    yield violation

    async def _transfers(self) -> AsyncIterator[Violation]:
        async for transfers in self.journal.transfers():
            self.counted["transfers"] += len(transfers)
            for transfer, entries in transfers:
                for violation in funds.judge_transfer(transfer, entries):
                    yield violation

    async def _orders(self) -> AsyncIterator[Violation]:
        unpaid = funds.UnpaidOrders()
        async for found in self.journal.orders():
            if isinstance(found, funds.ArchivedPayments):
                for violation in unpaid.violations(found.by_retainer):
                    yield violation
            else:
                for order in funds.of_each_order(found):
                    unpaid.add(order)
                    for violation in funds.judge_order(order):
                        yield violation
