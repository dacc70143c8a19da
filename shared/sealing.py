"""Secrets at rest: encrypted and authenticated with Fernet (AES-128-CBC and HMAC-SHA256).

The first key encrypts, all keys decrypt. To rotate, put a new key in front, encrypt what is stored with it, and remove
the old key.
"""

from contextlib import suppress
from typing import Annotated

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import AfterValidator, SecretStr

from shared.errors import OrdersagaError
from shared.live_settings import LiveSecret, as_secret


class UnreadableSecretError(OrdersagaError):
    """No key decrypts what is stored."""


def read_keys(text: str) -> list[Fernet]:
    """Return the keys in a text, separated by commas.

    Raises ValueError, without the text, for anything that is not a Fernet key.
    """
    return [Fernet(key.strip()) for key in text.split(",")]


def check_keys(text: str) -> None:
    """Raise ValueError, without the text, that says what is allowed unless it has keys."""
    try:
        read_keys(text)
    except ValueError:
        raise ValueError(
            "allowed are keys of 32 bytes in URL-safe base64, separated by commas; make one with "
            "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
        ) from None


def _checked(keys: SecretStr) -> SecretStr:
    check_keys(keys.get_secret_value())
    return keys


EncryptionKeys = Annotated[SecretStr, AfterValidator(_checked)]
"""A setting: one or more Fernet keys, separated by commas."""


class Sealer:
    """Encrypts and decrypts with keys that may change while the process runs."""

    def __init__(self, keys: str | LiveSecret) -> None:
        """Take one or more keys, separated by commas. Raises ValueError for anything that is not a Fernet key."""
        self._secret = as_secret(keys)
        self._known = self._secret.current()
        self._keys = read_keys(self._known)

    def seal(self, content: bytes) -> bytes:
        """Encrypt with the first key."""
        self._use(self._secret.current())
        return self._keys[0].encrypt(content)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt. Raises UnreadableSecretError if no key does.

        Another process may have been given a new key earlier, so the keys are read again on failure.
        """
        for keys in (self._secret.current, self._secret.refresh):
            self._use(keys())
            with suppress(InvalidToken):
                return MultiFernet(self._keys).decrypt(sealed)
        raise UnreadableSecretError("no key decrypts it")

    def reseal(self, sealed: bytes) -> bytes | None:
        """Encrypt what is sealed with the first key; return None if it already is.

        Raises UnreadableSecretError if no key decrypts it.
        """
        self._use(self._secret.current())
        try:
            self._keys[0].decrypt(sealed)
        except InvalidToken:
            self.open(sealed)
            return MultiFernet(self._keys).rotate(sealed)
        return None

    def _use(self, text: str) -> None:
        if text != self._known:
            self._keys, self._known = read_keys(text), text
