"""Turns the headers of a request into the principal that calls."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol
from urllib.parse import quote, unquote

from starlette.datastructures import Headers

from shared.access.errors import AuthenticationError, CredentialMissingError
from shared.access.keys import KeyRecord, is_secret_of, split_key
from shared.access.permissions import parse_role
from shared.access.principal import Principal, anonymous
from shared.clock import utc_now

ACTS_FOR = "ordersaga-acts-for"
"""The header in which the console names the person whom it acts for: `<subject>;<roles, separated by commas>`.

The subject is percent-encoded, because people may have names that a header cannot carry.
"""

MAX_CREDENTIAL_LENGTH = 16 * 1024
_KEY_PREFIX = "osk_"
_WRONG_KEY = "The API key is not valid"


class Keys(Protocol):
    """Where API keys are looked up."""

    def find(self, key_id: str) -> KeyRecord | None:
        """Return the key of this id."""
        ...


class Tokens(Protocol):
    """What verifies JWTs."""

    async def verify(self, token: str) -> Principal:
        """Return the principal that a token names. Raises AuthenticationError or IssuerUnavailableError."""
        ...


class Authenticator:
    """Recognizes callers by API keys, by JWTs, or by both; by neither if authentication is off."""

    def __init__(
        self, keys: Keys | None, tokens: Tokens | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._anonymous = anonymous() if keys is None and tokens is None else None

    async def authenticate(self, headers: Headers) -> Principal:
        """Return the caller.

        Raises AuthenticationError, with a message for the caller, or IssuerUnavailableError.
        """
        caller = self._anonymous or await self._by_credential(_only(headers, "authorization"))
        acts_for = _only(headers, ACTS_FOR)
        return caller if acts_for is None else _acting_for(caller, acts_for)

    async def _by_credential(self, authorization: str | None) -> Principal:
        credential = _bearer(authorization)
        if credential.startswith(_KEY_PREFIX):
            return self._by_key(credential)
        if self._tokens is None:
            raise AuthenticationError(
                "This is no API key, and tokens of an OpenID Connect issuer are not accepted here"
            )
        return await self._tokens.verify(credential)

    def _by_key(self, given: str) -> Principal:
        if self._keys is None:
            raise AuthenticationError("API keys are not accepted here, only tokens of an OpenID Connect issuer")
        parts = split_key(given)
        if parts is None:
            raise AuthenticationError(f"{_WRONG_KEY}: it is not complete, or has a wrong character")
        record = self._keys.find(parts[0])
        if record is None or not is_secret_of(record, parts[1]):
            raise AuthenticationError(_WRONG_KEY)
        if why := record.why_invalid(self._clock()):
            raise AuthenticationError(f"The API key {record.id} is {why}")
        return record.principal()


def _only(headers: Headers, name: str) -> str | None:
    """Return a header that must not occur twice: it must be clear which of them counts."""
    values = headers.getlist(name)
    if len(values) > 1:
        raise AuthenticationError(f"The request has the header {name} {len(values)} times")
    return values[0] if values else None


def _bearer(authorization: str | None) -> str:
    if authorization is None:
        raise CredentialMissingError("The request needs the header Authorization: Bearer, with an API key or a token")
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise AuthenticationError("The header Authorization must be Bearer, followed by an API key or a token")
    if len(credential) > MAX_CREDENTIAL_LENGTH:
        raise AuthenticationError("The header Authorization is too long for an API key or a token")
    return credential.strip()


def acts_for_header(person: Principal) -> dict[str, str]:
    """Return the header of a request for a person."""
    return {ACTS_FOR: f"{quote(person.id, safe=' @:')};{','.join(sorted(person.roles))}"}


def _acting_for(caller: Principal, header: str) -> Principal:
    person, separator, names = header.partition(";")
    person = unquote(person.strip())
    try:
        roles = frozenset(parse_role(name.strip()) for name in names.split(",") if name.strip())
    except ValueError as error:
        raise AuthenticationError(f"{ACTS_FOR}: {error}") from None
    if not separator or not person or len(person) > 200 or not roles:
        raise AuthenticationError(f"{ACTS_FOR} must be the person's name, a semicolon and roles separated by commas")
    return caller.acting_for(person, roles)
