"""The funds API of one payment process, run inside the test process with its own connection."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx

from payment_service.funds.api import create_router
from payment_service.funds.funds import open_funds
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.transactions import Transactions
from payment_service.schema import SCHEMA
from shared.clock import utc_now
from shared.database import Database
from shared.http import add_routes, create_app
from shared.schema import prepare
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import connected
from tests.support.funds_client import Funds, read_books


@dataclass(frozen=True)
class FundsApp:
    """The funds of one process: an HTTP client of its API, its database and its transactions."""

    http: httpx.AsyncClient
    database: Database
    transactions: Transactions

    @property
    def client(self) -> Funds:
        """Return a client of the API."""
        return Funds(self.http, lambda: "http://localhost")


@asynccontextmanager
async def funds_app(mongodb_url: str, database_prefix: str, driver: str = "pymongo") -> AsyncIterator[FundsApp]:
    """Serve the funds of the database prefix; several apps with one prefix act as several processes."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(connected(mongodb_url, f"{database_prefix}_payments", driver))
        await prepare(database, SCHEMA)
        transactions = Transactions(database, limit_seconds=120)
        app = create_app("payment", "Funds", _nothing_is_down, authenticator=key_authenticator())
        add_routes(app.router, create_router(open_funds(database, Ledger(database, utc_now), transactions, utc_now)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN)
        )
        yield FundsApp(http, database, transactions)


async def assert_books_balance(app: FundsApp) -> None:
    """Fail with a list of all discrepancies in the books, if there are any."""
    assert (await read_books(app.database)).discrepancies() == []


async def _nothing_is_down() -> dict[str, str]:
    return {}
