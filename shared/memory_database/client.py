"""A client: one process's way to all databases of the server, and its sessions."""

from typing import TYPE_CHECKING, Any

from bson import Binary

from shared.memory_database.connection import Connection
from shared.memory_database.errors import refuse_options, unknown
from shared.memory_database.session import MemorySession

if TYPE_CHECKING:
    from shared.memory_database.database import MemoryDatabase


class MemoryClient:
    """The client of one process, as PyMongo's AsyncMongoClient."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._free_sessions: list[Binary] = []

    def __getitem__(self, name: str) -> "MemoryDatabase":
        from shared.memory_database.database import MemoryDatabase

        return MemoryDatabase(name, clock=self.connection.server.clock, client=self)

    def start_session(self, *, snapshot: bool = False, **options: Any) -> MemorySession:
        """Start a session, under the id of one that has ended if there is any."""
        refuse_options("start_session", options)
        session_id = self._free_sessions.pop() if self._free_sessions else self.connection.server.new_session_id()
        return MemorySession(self, self.connection, session_id, snapshot=snapshot)

    def return_session_id(self, session_id: Binary) -> None:
        """Let the next session have the id of one that has ended."""
        self._free_sessions.append(session_id)

    async def drop_database(self, name: str) -> None:
        server = self.connection.server
        server.drop([each.namespace for each in server.collections(name)])

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def __getattr__(self, name: str) -> Any:
        raise unknown("client", name)
