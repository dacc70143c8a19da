"""The secrets that sign deliveries: shown once, and stored encrypted together with the id of their endpoint.

To rotate the key, put a new one in front, let `ordersaga credentials rotate webhooks` encrypt the stored secrets with
it, and remove the old key.
"""

import base64
import secrets
from collections.abc import Sequence

import orjson

from shared.live_settings import LiveSecret
from shared.sealing import Sealer, UnreadableSecretError

PREFIX = "whsec_"
_BYTES = 32


def new_secret() -> str:
    """Return a new secret, in the form that the libraries of Standard Webhooks take."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


class SecretVault:
    """Encrypts and decrypts the secrets of endpoints."""

    def __init__(self, keys: str | LiveSecret) -> None:
        """Take one or more keys, separated by commas. Raises ValueError for anything that is not a Fernet key."""
        self._sealer = Sealer(keys)

    def seal(self, endpoint_id: str, secret: str) -> bytes:
        """Encrypt the secret of an endpoint."""
        return self._sealer.seal(orjson.dumps({"endpointId": endpoint_id, "secret": secret}))

    def reseal(self, _endpoint_id: str, sealed: bytes) -> bytes | None:
        """Encrypt a secret with the first key; return None if it already is.

        Raises UnreadableSecretError if no key decrypts it.
        """
        return self._sealer.reseal(sealed)

    def open(self, endpoint_id: str, sealed: Sequence[bytes]) -> list[str]:
        """Decrypt secrets of an endpoint, as many as the keys can, so that an old one does not hold up a new one.

        Raises UnreadableSecretError if no key decrypts any, or one is another endpoint's.
        """
        secrets: list[str] = []
        failure: UnreadableSecretError | None = None
        for each in sealed:
            try:
                opened = orjson.loads(self._sealer.open(each))
            except UnreadableSecretError as error:
                failure = error
                continue
            if opened["endpointId"] != endpoint_id:
                raise UnreadableSecretError("it belongs to another endpoint")
            secrets.append(opened["secret"])
        if failure is not None and not secrets:
            raise failure
        return secrets
