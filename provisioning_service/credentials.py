"""Credentials at rest: encrypted and authenticated with Fernet (AES-128-CBC and HMAC-SHA256), with the order's id.

The first key encrypts, all keys decrypt. To rotate, put a new key in front, let `ordersaga credentials rotate` encrypt
the stored credentials with it, and remove the old key.
"""

from contextlib import suppress
from dataclasses import dataclass

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from provisioning_service.provider import Access
from shared.errors import OrdersagaError
from shared.live_settings import LiveSecret, as_secret


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


def read_keys(text: str) -> list[Fernet]:
    """Return the keys in a text, separated by commas.

    Raises ValueError, without the text, for anything that is not a Fernet key.
    """
    return [Fernet(key.strip()) for key in text.split(",")]


class Vault:
    """Encrypts and decrypts credentials."""

    def __init__(self, keys: str | LiveSecret) -> None:
        """Take one or more keys, separated by commas. Raises ValueError for anything that is not a Fernet key."""
        self._secret = as_secret(keys)
        self._known = self._secret.current()
        self._keys = read_keys(self._known)

    def seal(self, order_id: str, access: Access) -> bytes:
        """Encrypt what only the order's owner may see."""
        secret = {"orderId": order_id, "ip": access.ip, "username": access.username, "password": access.password}
        self._use(self._secret.current())
        return self._keys[0].encrypt(orjson.dumps(secret))

    def open(self, order_id: str, sealed: bytes) -> Credentials:
        """Decrypt. Raises UnreadableCredentialsError if the key is missing or they belong to another order."""
        secret = orjson.loads(self._decrypt(order_id, sealed))
        if secret["orderId"] != order_id:
            raise UnreadableCredentialsError(f"the credentials recorded for order {order_id} are another order's")
        return Credentials(secret["ip"], secret["username"], secret["password"])

    def reseal(self, order_id: str, sealed: bytes) -> bytes | None:
        """Encrypt credentials with the first key; return None if they already are.

        Raises UnreadableCredentialsError if no key decrypts them.
        """
        self._use(self._secret.current())
        try:
            self._keys[0].decrypt(sealed)
        except InvalidToken:
            self._decrypt(order_id, sealed)
            return MultiFernet(self._keys).rotate(sealed)
        return None

    def _decrypt(self, order_id: str, sealed: bytes) -> bytes:
        """Decrypt; another process may have been given a new key earlier, so the keys are read again on failure."""
        for keys in (self._secret.current, self._secret.refresh):
            self._use(keys())
            with suppress(InvalidToken):
                return MultiFernet(self._keys).decrypt(sealed)
        raise UnreadableCredentialsError(f"no key opens the credentials of order {order_id}")

    def _use(self, text: str) -> None:
        if text != self._known:
            self._keys, self._known = read_keys(text), text
