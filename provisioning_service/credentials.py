"""Credentials at rest: encrypted (see shared.sealing) together with the id of their order.

To rotate the key, put a new one in front, let `ordersaga credentials rotate` encrypt the stored credentials with it,
and remove the old key.
"""

from dataclasses import dataclass

import orjson

from provisioning_service.provider import Access
from shared.live_settings import LiveSecret
from shared.sealing import Sealer, UnreadableSecretError


class UnreadableCredentialsError(UnreadableSecretError):
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

    def __init__(self, keys: str | LiveSecret) -> None:
        """Take one or more keys, separated by commas. Raises ValueError for anything that is not a Fernet key."""
        self._sealer = Sealer(keys)

    def seal(self, order_id: str, access: Access) -> bytes:
        """Encrypt what only the order's owner may see."""
        secret = {"orderId": order_id, "ip": access.ip, "username": access.username, "password": access.password}
        return self._sealer.seal(orjson.dumps(secret))

    def open(self, order_id: str, sealed: bytes) -> Credentials:
        """Decrypt. Raises UnreadableCredentialsError if the key is missing or they belong to another order."""
        try:
            secret = orjson.loads(self._sealer.open(sealed))
        except UnreadableSecretError:
            raise _unreadable(order_id) from None
        if secret["orderId"] != order_id:
            raise UnreadableCredentialsError(f"the credentials recorded for order {order_id} are another order's")
        return Credentials(secret["ip"], secret["username"], secret["password"])

    def reseal(self, order_id: str, sealed: bytes) -> bytes | None:
        """Encrypt credentials with the first key; return None if they already are.

        Raises UnreadableCredentialsError if no key decrypts them.
        """
        try:
            return self._sealer.reseal(sealed)
        except UnreadableSecretError:
            raise _unreadable(order_id) from None


def _unreadable(order_id: str) -> UnreadableCredentialsError:
    return UnreadableCredentialsError(f"no key opens the credentials of order {order_id}")
