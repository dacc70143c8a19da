"""The way of a call to the server and back, with the steps at which a simulation may interfere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pymongo.errors import ConnectionFailure, OperationFailure

from shared.memory_database.errors import TRANSIENT_TRANSACTION, ServerError, add_label
from shared.memory_database.server import Server, Snapshot
from shared.memory_database.session import MemorySession
from shared.memory_database.storage import Transaction

T = TypeVar("T")
Reader = Snapshot | Transaction | None
Translate = Callable[[ServerError], OperationFailure]

Step = Callable[[str, str], Awaitable[None]]
"""Called with the operation and the collection: as itself before it takes effect, as `<operation>:answer` after that
and before the caller learns of it, and as `<operation>:next` between the writes of one bulk.

What it raises, the caller gets. An error of the driver, such as AutoReconnect, stands for a lost connection whose
retries have failed as well.
"""


class Connection:
    """One process's connection to the server."""

    def __init__(self, server: Server, step: Step | None) -> None:
        self.server = server
        self._step = step

    async def before(self, operation: str, collection: str) -> None:
        """Let the simulation act before an operation, or the event loop run others if there is none."""
        if self._step is None:
            await asyncio.sleep(0)
        else:
            await self._step(operation, collection)

    async def after(self, operation: str, collection: str) -> None:
        """Let the simulation act before the caller learns the result of an operation."""
        if self._step is not None:
            await self._step(f"{operation}:answer", collection)

    async def read(self, operation: str, name: str, session: MemorySession | None, work: Callable[[Reader], T]) -> T:
        """Carry out an operation that only reads."""

        async def perform(reader: Reader) -> T:
            return work(reader)

        return await self._call(operation, name, session, perform, ServerError.of_command)

    async def read_confirmed(
        self, operation: str, name: str, session: MemorySession | None, work: Callable[[Reader], T]
    ) -> T:
        """Carry out an operation that only reads, and wait until a majority has confirmed all that it may have seen."""

        async def perform(reader: Reader) -> T:
            result = work(reader)
            await self.server.confirmed()
            return result

        return await self._call(operation, name, session, perform, ServerError.of_command)

    async def write(
        self,
        operation: str,
        name: str,
        session: MemorySession | None,
        work: Callable[[Transaction | None], T],
        translate: Translate = ServerError.of_write,
    ) -> T:
        """Carry out a write; outside of transactions, return when a majority has confirmed it."""

        async def perform(reader: Reader) -> T:
            return await self.perform(reader, work)

        return await self._call(operation, name, session, perform, translate, writes=True)

    async def write_several(
        self,
        operation: str,
        name: str,
        session: MemorySession | None,
        perform: Callable[[Reader], Awaitable[T]],
    ) -> T:
        """Carry out several writes; outside of transactions, return when a majority has confirmed them."""
        return await self._call(operation, name, session, perform, ServerError.of_command, writes=True)

    async def perform(self, reader: Reader, work: Callable[[Transaction | None], T]) -> T:
        """Do work that writes, within a transaction if the reader is one."""
        if isinstance(reader, Snapshot):
            raise NotImplementedError("a write in a snapshot session")
        if reader is not None:
            self.server.require_open(reader)  # its session may have been killed between the writes of a bulk
        return await self.server.until_free(lambda: work(reader))

    async def _call(
        self,
        operation: str,
        name: str,
        session: MemorySession | None,
        perform: Callable[[Reader], Awaitable[T]],
        translate: Translate,
        *,
        writes: bool = False,
    ) -> T:
        try:
            await self.before(operation, name)
            try:
                result = await self._performed(session, perform, writes=writes)
            except ServerError as error:
                await self.after(operation, name)
                raise translate(error) from None
            await self.after(operation, name)
        except ConnectionFailure as error:
            if session is not None and session.in_transaction:
                add_label(error, TRANSIENT_TRANSACTION)
            raise
        return result

    async def _performed(
        self, session: MemorySession | None, perform: Callable[[Reader], Awaitable[T]], *, writes: bool
    ) -> T:
        reader = session.reader() if session is not None else None
        waits = writes and not isinstance(reader, Transaction)
        try:
            result = await perform(reader)
        except ServerError:
            if isinstance(reader, Transaction):
                self.server.abort(reader)
            elif waits:
                # What the failed write has seen must not be taken back when its caller knows of it.
                await self.server.confirmed()
            raise
        if waits:
            await self.server.confirmed()
        return result
