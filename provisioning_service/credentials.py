"""Credentials at rest: encrypted and authenticated with Fernet (AES-128-CBC and HMAC-SHA256), with the order's id.

The first key encrypts, all keys decrypt. To rotate, put a new key in front and keep the old ones as long as any
credentials are encrypted with them.
"""

from dataclasses import dataclass

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from provisioning_service.provider import Access
from shared.errors import OrdersagaError


class UnreadableCredentialsError(OrdersagaError):
    """No key decrypts the credentials, or they belong to another order."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a server, for the only endpoint that shows them."""

    ip: str
    username: str
    password: str

    def __repr__(self) -> str:
        """Leave the secrets out, because printed text may be logged."""
        return f"Credentials(ip={self.ip!r})"


class Vault:
    """Encrypts and decrypts credentials."""

    def __init__(self, keys: str) -> None:
        """Take one or more keys, separated by commas. Raises ValueError for anything that is not a Fernet key."""
        self._fernet = MultiFernet([Fernet(key) for key in keys.split(",")])

    def seal(self, order_id: str, access: Access) -> bytes:
        """Encrypt what only the order's owner may see."""
        secret = {"orderId": order_id, "ip": access.ip, "username": access.username, "password": access.password}
        return self._fernet.encrypt(orjson.dumps(secret))

    def open(self, order_id: str, sealed: bytes) -> Credentials:
        """Decrypt. Raises UnreadableCredentialsError if the key is missing or they belong to another order."""
        try:
            secret = orjson.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise UnreadableCredentialsError(f"no key opens the credentials of order {order_id}") from None
        if secret["orderId"] != order_id:
            raise UnreadableCredentialsError(f"the credentials recorded for order {order_id} are another order's")
        return Credentials(secret["ip"], secret["username"], secret["password"])
