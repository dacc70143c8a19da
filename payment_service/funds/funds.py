"""The operations on funds, wired over one database."""

from dataclasses import dataclass

from payment_service.funds.bank import Bank
from payment_service.funds.idempotency import IdempotentRunner
from payment_service.funds.invoices import Invoices
from payment_service.funds.payments import FundPayments
from payment_service.funds.retainers import Retainers
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.transactions import Transactions
from shared.clock import Clock
from shared.database import Database


@dataclass(frozen=True, slots=True)
class Funds:
    """Everything that the routes depend on."""

    idempotency: IdempotentRunner
    transactions: Transactions
    ledger: Ledger
    retainers: Retainers
    invoices: Invoices
    payments: FundPayments
    bank: Bank


def open_funds(database: Database, ledger: Ledger, transactions: Transactions, clock: Clock) -> Funds:
    """Wire the funds over a ledger that orders paid from retainers share."""
    payments = FundPayments(database, ledger, clock)
    return Funds(
        idempotency=IdempotentRunner(transactions, clock),
        transactions=transactions,
        ledger=ledger,
        retainers=Retainers(ledger, payments),
        invoices=Invoices(ledger),
        payments=payments,
        bank=Bank(database, ledger),
    )
