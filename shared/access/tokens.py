"""JWTs of an OpenID Connect issuer: verified, and turned into principals."""

import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shared.access.errors import AuthenticationError
from shared.access.issuer import Issuer
from shared.access.permissions import Role, grants_of
from shared.access.principal import Principal

LEEWAY_SECONDS = 30
"""How far the clocks of the issuer and of this machine may differ."""
REMEMBER_SECONDS = 60.0
"""The longest time for which a verified token is not verified again."""
MAX_REMEMBERED = 10_000
MIN_RSA_BITS = 2048

_ALGORITHMS: Mapping[str, type] = {
    "RS256": RSAPublicKey,
    "PS256": RSAPublicKey,
    "ES256": EllipticCurvePublicKey,
    "EdDSA": Ed25519PublicKey,
}
"""The algorithms that are accepted, whatever a token asks for, and the kind of key that each needs."""
_ROLE_NAMES = frozenset(str(role) for role in Role)
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "it is expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidIssuedAtError: "its claim iat is not a time",
}


class TokenVerifier:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(
        self,
        issuer: Issuer,
        audience: str,
        *,
        roles_claim: str = "roles",
        owner_claim: str = "sub",
        sole_key: bool = False,
    ) -> None:
        """Claims within claims are named by dots, as in `realm_access.roles`.

        With `sole_key`, a token need not name its key if the issuer has only one, as OpenID Connect allows for ID
        tokens.
        """
        self._sole_key = sole_key
        self._issuer = issuer
        self._audience = audience
        self._roles_claim = roles_claim
        self._owner_claim = owner_claim
        self._remembered: dict[bytes, tuple[float, Principal]] = {}

    async def verify(self, token: str) -> Principal:
        """Return the principal that a token names.

        Raises AuthenticationError if the token is not valid, IssuerUnavailableError if its issuer cannot be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        until, principal = self._remembered.get(digest, (0.0, None))
        if principal is not None and time.time() < until:
            return principal
        claims = await self.claims(token)
        principal = self.principal(claims)
        self._remember(digest, principal, float(claims["exp"]))
        return principal

    async def claims(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token. Raises as `verify` does."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise AuthenticationError("The token is not a JWT") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
            raise AuthenticationError(f"The token is not signed with one of {', '.join(_ALGORITHMS)}")
        key = await self._key(key_id)
        if key is None:
            raise AuthenticationError("The token is not valid: its issuer does not have the key that it names")
        if not _fits(key, algorithm):
            raise AuthenticationError("The token is not valid: its key is for another algorithm")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer.url,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
        except jwt.MissingRequiredClaimError as error:
            raise AuthenticationError(f"The token is not valid: it has no claim {error.claim}") from None
        except jwt.PyJWTError as error:
            reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), "a claim is malformed")
            raise AuthenticationError(f"The token is not valid: {reason}") from None
        return claims

    async def _key(self, key_id: object) -> jwt.PyJWK | None:
        if key_id is None and self._sole_key:
            return await self._issuer.sole_key()
        return await self._issuer.key(key_id) if isinstance(key_id, str) else None

    def principal(self, claims: Mapping[str, Any]) -> Principal:
        """Return the principal that verified claims name. Raises AuthenticationError if they name none."""
        subject, owner = (_name(claims, claim) for claim in ("sub", self._owner_claim))
        roles = _roles(_claim(claims, self._roles_claim))
        return Principal(subject, subject, owner, subject, roles, "token", grants_of(roles))

    def _remember(self, digest: bytes, principal: Principal, expires: float) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = (min(expires, time.time() + REMEMBER_SECONDS), principal)


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    """Return whether a key is one for this algorithm, and strong enough."""
    public = key.key
    if not isinstance(public, _ALGORITHMS[algorithm]):
        return False
    if isinstance(public, RSAPublicKey):
        return public.key_size >= MIN_RSA_BITS
    return not isinstance(public, EllipticCurvePublicKey) or isinstance(public.curve, SECP256R1)


def _claim(claims: Mapping[str, Any], path: str) -> object:
    value: object = claims.get(path)
    if value is None:
        value = claims
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _name(claims: Mapping[str, Any], path: str) -> str:
    value = _claim(claims, path)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise AuthenticationError(f"The token is not valid: its claim {path} is not a name of 1 to 128 characters")
    return value


def _roles(claim: object) -> frozenset[Role]:
    """Return the roles that we know; issuers also put others there."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    return frozenset(Role(name) for name in names if isinstance(name, str) and name in _ROLE_NAMES)
