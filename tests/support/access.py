"""API keys for tests: one for each role, and some of other owners and persons."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from shared.access.authenticator import Authenticator
from shared.access.key_file import format_keys
from shared.access.keys import KeyRecord, new_key
from shared.access.permissions import Role

OWNER = "tests"


@dataclass
class KeyRing:
    """Keys that a test makes as it needs them."""

    records: dict[str, KeyRecord] = field(default_factory=dict)

    def find(self, key_id: str) -> KeyRecord | None:
        return self.records.get(key_id)

    def add(
        self, role: Role, owner: str = OWNER, subject: str | None = None, *, expires: datetime | None = None
    ) -> str:
        """Return a new key."""
        key, key_id, sha256 = new_key()
        name = f"{role} of {owner}"
        self.records[key_id] = KeyRecord(key_id, sha256, role, owner, name, datetime.now(UTC), subject, expires)
        return key


RING = KeyRing()
"""The keys below; every service that a test starts knows them."""
ADMIN_KEY = RING.add(Role.ADMIN)
KEYS = {role: ADMIN_KEY if role is Role.ADMIN else RING.add(role, subject="u1") for role in Role}
OTHER_CLIENT_KEY = RING.add(Role.CLIENT, "another-shop")


def bearer(key: str) -> dict[str, str]:
    """The headers of a request with this key."""
    return {"Authorization": f"Bearer {key}"}


ADMIN = bearer(ADMIN_KEY)
"""The headers of a request that may do everything."""


def key_authenticator(keys: KeyRing = RING) -> Authenticator:
    """Recognizes these keys."""
    return Authenticator(keys)


@functools.cache
def keys_file() -> Path:
    """A file of the keys above, for services that run as processes; it is removed when the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="ordersaga-keys-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    file = directory / "keys.json"
    file.touch(mode=0o600)
    file.write_bytes(format_keys(RING.records.values()))
    return file
