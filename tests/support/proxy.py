"""A TCP proxy before a server, for tests of a connection that goes silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yarl import URL


class Proxy:
    """A TCP proxy before the server at a URL, which can stop carrying what the server says, and cut its connections."""

    def __init__(self, url: URL) -> None:
        self._server = url
        self.carrying = asyncio.Event()
        self.carrying.set()
        self.url = url
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = self._server.with_host("127.0.0.1").with_port(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close all connections; new ones are taken."""
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._server.host, self._server.port)
        for source, target, gate in ((reader, to_server, None), (from_server, writer, self.carrying)):
            self._tasks.add(asyncio.create_task(self._carry(source, target, gate)))

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event | None
    ) -> None:
        try:
            while data := await source.read(65536):
                if gate is not None:
                    await gate.wait()
                target.write(data)
        finally:
            target.close()
