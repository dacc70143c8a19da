"""The one API key of the simulation's clients and operators, which may do everything."""

from shared.access.keys import KeyRecord, new_key
from shared.access.permissions import Role
from simulation.entropy import BEGINNING, seeded
from simulation.loop import SimulatedLoop


class _Keys:
    """The keys that the services know."""

    def __init__(self) -> None:
        loop = SimulatedLoop()
        with seeded(0, loop):
            self.key, key_id, sha256 = new_key()
        loop.close()
        self._record = KeyRecord(key_id, sha256, Role.ADMIN, "simulation", "simulation", BEGINNING)

    def find(self, key_id: str) -> KeyRecord | None:
        """Return the key if it has this id."""
        return self._record if key_id == self._record.id else None


KEYS = _Keys()
HEADERS = ((b"host", b"localhost"), (b"authorization", f"Bearer {KEYS.key}".encode()))
"""The headers of every request."""
