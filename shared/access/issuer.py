"""An OpenID Connect issuer: its configuration and signing keys, found by discovery, kept, and asked for again in time.

Discovery: https://openid.net/specs/openid-connect-discovery-1_0.html. Key sets: RFC 7517.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog

from shared.access.errors import IssuerUnavailableError
from shared.tls import issuer_context
from shared.urls import is_unalterable

KEEP_SECONDS = 600.0
"""How long keys are used before they are asked for again, so that a key which the issuer withdrew ends."""
UNKNOWN_KEY_SECONDS = 30.0
"""The shortest time between two requests for keys: a stranger must not make us ask for every token."""
RETRY_SECONDS = 5.0
"""The shortest time between two requests for the configuration while the issuer does not answer."""
TIMEOUT_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100

_log = structlog.get_logger(__name__)


class Issuer:
    """The keys of one issuer, by their ids. The last good set outlives an outage of the issuer."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """`url` is the issuer's identifier, below which its configuration is found.

        Its certificate must be from a CA in `ca_file`, or else from one of the system. Raises StartError if the file
        cannot be used.
        """
        self.url = url
        self._tls = issuer_context(ca_file)
        self._client: httpx.AsyncClient | None = None
        self._configuration: Mapping[str, Any] | None = None
        self._configured, self._stale = -math.inf, True
        self._configuring = asyncio.Lock()
        self._keys: Mapping[str, jwt.PyJWK] | None = None
        self._asked = -math.inf
        self._asking = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key of this id, None if the issuer has none.

        Raises IssuerUnavailableError if the issuer has not told its keys yet.
        """
        if self._keys is None or key_id not in self._keys:
            await self._ask_unless_within(UNKNOWN_KEY_SECONDS)
        elif self._age() > KEEP_SECONDS and (self._renewal is None or self._renewal.done()):
            # In the background: tokens are still verified while the issuer is slow or away.
            self._renewal = asyncio.create_task(self._ask_unless_within(KEEP_SECONDS))
        if self._keys is None:
            raise IssuerUnavailableError(f"{self.url} has not told its keys")
        return self._keys.get(key_id)

    async def sole_key(self) -> jwt.PyJWK | None:
        """Return the key of an issuer that has only one, None if it has several.

        Raises IssuerUnavailableError as `key` does.
        """
        if self._keys is None or self._age() > KEEP_SECONDS:
            await self._ask_unless_within(UNKNOWN_KEY_SECONDS)
        if self._keys is None:
            raise IssuerUnavailableError(f"{self.url} has not told its keys")
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _age(self) -> float:
        return time.monotonic() - self._asked

    async def _ask_unless_within(self, seconds: float) -> None:
        """Ask for the keys unless that was done within this time; a second caller waits for the first one's answer."""
        async with self._asking:
            if self._age() > seconds:
                await self._ask()
                self._asked = time.monotonic()

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                self._keys = await self._read()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            _log.warning("keys of the issuer not read", issuer=self.url, why=str(error)[:200] or type(error).__name__)

    async def endpoint(self, name: str) -> str:
        """Return the address that the issuer's configuration has under this name.

        The configuration is read again after KEEP_SECONDS; the last one outlives an outage of the issuer. Raises
        IssuerUnavailableError if it could not be read yet, or does not have the address.
        """
        async with self._configuring:
            if time.monotonic() - self._configured > (RETRY_SECONDS if self._stale else KEEP_SECONDS):
                await self._configure()
        try:
            return _address(self._configuration or {}, name)
        except ValueError as error:
            why = str(error) if self._configuration else "it does not answer"
            raise IssuerUnavailableError(f"{self.url} has not told its {name}: {why}") from None

    async def _configure(self) -> None:
        try:
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                self._configuration, self._stale = await self._read_configuration(), False
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            self._stale = True
            why = str(error)[:200] or type(error).__name__
            _log.warning("configuration of the issuer not read", issuer=self.url, why=why)
        self._configured = time.monotonic()

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client for requests to the issuer."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False, verify=self._tls
            )
        return self._client

    async def _read_configuration(self) -> dict[str, Any]:
        configuration = await self._get(f"{self.url.rstrip('/')}/.well-known/openid-configuration")
        if configuration.get("issuer") != self.url:
            raise ValueError("its configuration names another issuer")
        return configuration

    async def _read(self) -> Mapping[str, jwt.PyJWK]:
        configuration = await self._read_configuration()
        found = (await self._get(_address(configuration, "jwks_uri"))).get("keys")
        if not isinstance(found, list):
            raise ValueError("its key set has no keys")  # noqa: TRY004 - about a document, like the others
        return {key.key_id: key for key in map(_key, found[:MAX_KEYS]) if key is not None and key.key_id}

    async def _get(self, address: str) -> dict[str, Any]:
        async with self.client.stream("GET", address) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"{address} answers {response.status_code}")
            body = b""
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{address} answers more than {MAX_DOCUMENT_BYTES // 1024} KiB")
        document = httpx.Response(200, content=body).json()
        if not isinstance(document, dict):
            raise ValueError(f"{address} does not answer a JSON object")  # noqa: TRY004
        return document


def _address(configuration: Mapping[str, Any], name: str) -> str:
    address = configuration.get(name)
    if not isinstance(address, str) or not is_unalterable(address):
        raise ValueError(f"its configuration has no {name} with https")
    return address


def _key(described: object) -> jwt.PyJWK | None:
    """Return a public key for signatures; None for any other, above all for a symmetric one."""
    if not isinstance(described, dict) or described.get("use", "sig") != "sig":
        return None
    if described.get("kty") not in ("RSA", "EC", "OKP") or not isinstance(described.get("kid"), str):
        return None
    try:
        return jwt.PyJWK({name: value for name, value in described.items() if name != "d"})
    except (jwt.PyJWTError, TypeError, ValueError, KeyError):
        return None  # a kind that we do not use
