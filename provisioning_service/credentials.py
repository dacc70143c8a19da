"""Credentials at rest: encrypted and authenticated with Fernet (AES-128-CBC and HMAC-SHA256), the order's id inside.

The first of the keys encrypts, all of them decrypt: a new key is put in front, and the old ones stay as long as there
are credentials under them.
"""

from dataclasses import dataclass

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from provisioning_service.provider import Access


class UnreadableCredentialsError(Exception):
    """None of the keys opens them, or they are another order's."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to get into a server, for the one endpoint that shows it."""

    ip: str
    username: str
    password: str

    def __repr__(self) -> str:
        """Leave the secrets out: what is printed ends in a log."""
        return f"Credentials(ip={self.ip!r})"


class Vault:
    """Seals credentials and opens them again."""

    def __init__(self, keys: str) -> None:
        """Take one key or several, separated by commas; raises ValueError for one that is not a Fernet key."""
        self._fernet = MultiFernet([Fernet(key) for key in keys.split(",")])

    def seal(self, order_id: str, access: Access) -> bytes:
        """Encrypt what may be shown to the order's owner only."""
        secret = {"orderId": order_id, "ip": access.ip, "username": access.username, "password": access.password}
        return self._fernet.encrypt(orjson.dumps(secret))

    def open(self, order_id: str, sealed: bytes) -> Credentials:
        """Decrypt; raises UnreadableCredentialsError where the key is missing or the credentials are another's."""
        try:
            secret = orjson.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise UnreadableCredentialsError(f"no key opens the credentials of order {order_id}") from None
        if secret["orderId"] != order_id:
            raise UnreadableCredentialsError(f"the credentials recorded for order {order_id} are another order's")
        return Credentials(secret["ip"], secret["username"], secret["password"])
