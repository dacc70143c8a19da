"""Sign-in by OpenID Connect: the authorization code flow with PKCE, `state` and `nonce`.

Specification: https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth. Authlib builds the requests; the ID
token is verified like every other token of the issuer.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from operations.sign_in.person import MOST_OF_A_NAME, Person
from shared.access.errors import AuthenticationError, IssuerUnavailableError
from shared.access.issuer import Issuer
from shared.access.tokens import TokenVerifier

_NAMES = ("name", "preferred_username", "email")
"""Claims with a person's name, the best first."""


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """What the browser keeps while a person is at the issuer."""

    state: str
    nonce: str
    verifier: str
    next: str

    def as_cookie(self) -> str:
        """Return it as the value of a cookie."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()


def read_pending(cookie: str) -> PendingSignIn | None:
    """Return what `as_cookie` wrote, None if it is something else."""
    try:
        return PendingSignIn(
            **{name: str(value) for name, value in json.loads(base64.urlsafe_b64decode(cookie)).items()}
        )
    except (ValueError, TypeError, AttributeError):
        return None


class OidcSignIn:
    """The console as a client of an OpenID Connect issuer."""

    def __init__(
        self,
        issuer: Issuer,
        client_id: str,
        client_secret: str | None = None,
        *,
        roles_claim: str = "roles",
        scopes: str = "openid profile email",
    ) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._scopes = scopes
        self._tokens = TokenVerifier(issuer, client_id, roles_claim=roles_claim, sole_key=True)

    async def begin(self, redirect_uri: str, next_path: str) -> tuple[str, PendingSignIn]:
        """Return the issuer's address to send the browser to, and what to keep meanwhile.

        Raises IssuerUnavailableError.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        pending = PendingSignIn(state, nonce, verifier, next_path)
        address = prepare_grant_uri(
            await self.issuer.endpoint("authorization_endpoint"),
            self._client_id,
            "code",
            redirect_uri=redirect_uri,
            scope=self._scopes,
            state=pending.state,
            nonce=pending.nonce,
            code_challenge=create_s256_code_challenge(pending.verifier),
            code_challenge_method="S256",
        )
        return str(address), pending

    async def finish(self, pending: PendingSignIn, state: str, code: str, redirect_uri: str) -> Person:
        """Exchange the code for an ID token and return the person it names, with all roles that it has.

        Raises AuthenticationError if the answer is not for this sign-in or not valid, IssuerUnavailableError.
        """
        if not hmac.compare_digest(pending.state.encode(), state.encode()):
            raise AuthenticationError("The answer of the issuer belongs to another sign-in: try again")
        claims = await self._tokens.claims(await self._id_token(pending, code, redirect_uri))
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(pending.nonce.encode(), nonce.encode()):
            raise AuthenticationError("The token of the issuer belongs to another sign-in: try again")
        if claims.get("azp", self._client_id) != self._client_id:
            raise AuthenticationError("The token of the issuer is for another client")
        principal = self._tokens.principal(claims)
        return Person(principal.id, _name(claims) or principal.id, principal.roles)

    async def _id_token(self, pending: PendingSignIn, code: str, redirect_uri: str) -> str:
        address = await self.issuer.endpoint("token_endpoint")
        body = prepare_token_request(
            "authorization_code", code=code, redirect_uri=redirect_uri, code_verifier=pending.verifier
        )
        method = "client_secret_basic" if self._client_secret else "none"
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        auth = ClientAuth(self._client_id, self._client_secret, method)
        address, headers, body = auth.prepare("POST", address, headers, body)
        try:
            answer = await self.issuer.client.post(address, headers=headers, content=body)
            answered = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise IssuerUnavailableError(f"{self.issuer.url} gives no token: {type(error).__name__}") from None
        token = answered.get("id_token") if isinstance(answered, dict) and answer.is_success else None
        if not isinstance(token, str):
            raise AuthenticationError("The issuer did not accept the sign-in: try again")
        return token


def _name(claims: Mapping[str, Any]) -> str | None:
    """Return the name of a person for people to read, None without one that can be shown."""
    given = (claims.get(claim) for claim in _NAMES)
    return next((name for name in given if isinstance(name, str) and name.isprintable() and name), "")[:MOST_OF_A_NAME]
