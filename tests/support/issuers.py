"""An OpenID Connect issuer as a real HTTP server: its documents can be changed, and its tokens can be wrong."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI, Request, Response

from tests.support.certificates import Pair
from tests.support.consoles import serve

AUDIENCE = "ordersaga"


@dataclass
class MockIssuer:
    """The documents of an issuer, the keys behind them, and what it was asked."""

    url: str = ""
    rsa_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    ec_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ed_key: ed25519.Ed25519PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)
    configuration: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    asked: int = 0
    """How often its keys were read."""
    configured: int = 0
    """How often its configuration was read."""
    begun: dict[str, dict[str, str]] = field(default_factory=dict)
    """The requests for a sign-in, by the code that answers each."""
    id_token: dict[str, Any] = field(default_factory=dict)
    """Claims that its ID tokens have besides the usual ones, or instead of them."""

    def __post_init__(self) -> None:
        algorithms: list[tuple[str, Any, Any]] = [
            ("rsa", jwt.algorithms.RSAAlgorithm, self.rsa_key),
            ("ec", jwt.algorithms.ECAlgorithm, self.ec_key),
            ("ed", jwt.algorithms.OKPAlgorithm, self.ed_key),
        ]
        for key_id, algorithm, key in algorithms:
            self.publish(key_id, json.loads(algorithm.to_jwk(key.public_key())))

    def publish(self, key_id: str, described: dict[str, Any]) -> None:
        self.keys.append({**described, "kid": key_id, "use": "sig"})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a valid token; None leaves one out."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + 300, "roles": ["client"]}
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(
        self, algorithm: str = "ES256", key_id: str | None = "ec", key: Any = None, headers: Any = None, **claims: Any
    ) -> str:
        """A token, valid unless something is changed."""
        keys: dict[str, Any] = {
            "RS256": self.rsa_key,
            "PS256": self.rsa_key,
            "ES256": self.ec_key,
            "EdDSA": self.ed_key,
        }
        all_headers = (headers or {}) | ({"kid": key_id} if key_id is not None else {})
        return jwt.encode(self.claims(**claims), key or keys[algorithm], algorithm, all_headers)

    @property
    def public_pem(self) -> bytes:
        """The RSA key as anybody can compute it from the key set."""
        return self.rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def application(self) -> FastAPI:
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        async def configuration() -> Response:
            self.configured += 1
            return Response(json.dumps(self.configuration), self.status, media_type="application/json")

        @app.get("/keys")
        async def keys() -> Response:
            self.asked += 1
            return Response(json.dumps({"keys": self.keys}), self.status, media_type="application/json")

        @app.get("/authorize")
        async def authorize(request: Request) -> Response:
            """As if the person had signed in at once."""
            code = secrets.token_urlsafe()
            asked = self.begun[code] = dict(request.query_params)
            query = urlencode({"code": code, "state": asked["state"]})
            return Response(status_code=303, headers={"Location": f"{asked['redirect_uri']}?{query}"})

        @app.post("/token")
        async def token(request: Request) -> Response:
            given = dict(parse_qsl((await request.body()).decode()))
            asked = self.begun.pop(given["code"], None)
            challenge = hashlib.sha256(given["code_verifier"].encode()).digest()
            if (
                asked is None
                or asked["code_challenge_method"] != "S256"
                or asked["code_challenge"] != base64.urlsafe_b64encode(challenge).rstrip(b"=").decode()
                or asked["redirect_uri"] != given["redirect_uri"]
            ):
                return Response('{"error": "invalid_grant"}', 400, media_type="application/json")
            claims = {"aud": asked["client_id"], "nonce": asked["nonce"], **self.id_token}
            return Response(json.dumps({"id_token": self.token(**claims)}), media_type="application/json")

        return app


@asynccontextmanager
async def run_issuer(tls: Pair | None = None) -> AsyncIterator[MockIssuer]:
    """Serve an issuer until the context ends."""
    issuer = MockIssuer()
    async with serve(issuer.application(), tls) as url:
        issuer.url = url
        addresses = {"jwks_uri": "keys", "authorization_endpoint": "authorize", "token_endpoint": "token"}
        issuer.configuration = {"issuer": url, **{name: f"{url}/{path}" for name, path in addresses.items()}}
        yield issuer


WRONG: dict[str, tuple[Callable[[MockIssuer], str], str]] = {
    "not a JWT": (lambda i: "a.b.c", "is not a JWT"),
    "another audience": (lambda i: i.token(aud="another"), "another audience"),
    "another issuer": (lambda i: i.token(iss="https://other.example"), "another issuer"),
    "expired": (lambda i: i.token(exp=int(time.time()) - 31), "is expired"),
    "not before": (lambda i: i.token(nbf=int(time.time()) + 120), "not valid yet"),
    "issued in the future": (lambda i: i.token(iat=int(time.time()) + 120), "not valid yet"),
    "no exp": (lambda i: i.token(exp=None), "no claim exp"),
    "no iat": (lambda i: i.token(iat=None), "no claim iat"),
    "no iss": (lambda i: i.token(iss=None), "no claim iss"),
    "no aud": (lambda i: i.token(aud=None), "no claim aud"),
    "no sub": (lambda i: i.token(sub=None), "no claim sub"),
    "exp is text": (lambda i: i.token(exp="tomorrow"), "is malformed"),
    "sub is empty": (lambda i: i.token(sub=""), "not a name"),
    "sub is long": (lambda i: i.token(sub="x" * 129), "not a name"),
    "another key": (lambda i: i.token(key=ec.generate_private_key(ec.SECP256R1())), "signature is wrong"),
    "unknown key": (lambda i: i.token(key_id="unknown"), "does not have the key"),
    "no key id": (lambda i: i.token(key_id=None), "does not have the key"),
    "the key of another algorithm": (lambda i: i.token("RS256", "ec"), "for another algorithm"),
    "alg none": (lambda i: _unsigned(i), "not signed with one of"),
    "HS256 with the public key": (lambda i: _confused(i), "not signed with one of"),
    "RS384": (lambda i: jwt.encode(i.claims(), i.rsa_key, "RS384", {"kid": "rsa"}), "not signed with one of"),
    "a key of its own": (lambda i: _with_own_key(i), "signature is wrong"),
    "a changed claim": (lambda i: _changed(i), "signature is wrong"),
}
"""Tokens that are not valid, and what the refusal says."""


def _unsigned(issuer: MockIssuer) -> str:
    return jwt.encode(issuer.claims(), None, "none", {"kid": "ec"})  # type: ignore[arg-type]


def _confused(issuer: MockIssuer) -> str:
    """PyJWT refuses to sign with a public key, so this does it by hand, as an attacker would."""

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT", "kid": "rsa"}) + b"." + part(issuer.claims(roles=["admin"]))
    signature = hmac.new(issuer.public_pem, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _with_own_key(issuer: MockIssuer) -> str:
    """The header brings the key along, and says where more are."""
    own = rsa.generate_private_key(65537, 2048)
    described = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    headers = {"jwk": described, "jku": "https://attacker.example/keys", "x5u": "https://attacker.example/cert"}
    return issuer.token("RS256", "rsa", own, headers)


def _changed(issuer: MockIssuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{issuer.token(roles=['admin']).split('.')[1]}.{signature}"
