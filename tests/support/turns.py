"""Keeps documents busy within a process, as an operation does whose transaction takes long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from payment_service.ledger.transactions import Transactions
from payment_service.ledger.unit_of_work import Reference, UnitOfWork


@asynccontextmanager
async def turn_taken(transactions: Transactions, *touches: Reference) -> AsyncIterator[None]:
    """Let an operation on these documents run until the context ends; it changes nothing."""
    entered, free = asyncio.Event(), asyncio.Event()

    async def work(_unit: UnitOfWork) -> None:
        entered.set()
        await free.wait()

    running = asyncio.create_task(transactions.run("keeping busy", work, touches))
    await entered.wait()
    try:
        yield
    finally:
        free.set()
        await running
