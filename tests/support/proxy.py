"""A TCP proxy before a server, for tests of connections that go silent or break, and of nodes that are away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext

from yarl import URL


class Proxy:
    """A TCP proxy before the server at a URL. It can hold what the server says, cut connections, or be gone."""

    def __init__(self, url: URL) -> None:
        self._server = url
        self.carrying = asyncio.Event()
        self.carrying.set()
        self.url = url
        self.connections = 0
        self._listener: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(
        self, host: str = "127.0.0.1", port: int = 0, ssl: SSLContext | None = None
    ) -> AsyncIterator["Proxy"]:
        """Take connections; with `ssl`, over TLS, which ends here."""
        self._listener = await asyncio.start_server(self._connected, host, port, ssl=ssl)
        self.url = self._server.with_host(host).with_port(self._listener.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            await self.die()

    async def die(self) -> None:
        """Refuse connections and break those that are open, as a server that is killed."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def revive(self) -> None:
        """Take connections again at the same address, after it has died."""
        self._listener = await asyncio.start_server(self._connected, self.url.host, self.url.port)

    def cut(self) -> None:
        """Close all connections; new ones are taken."""
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
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
