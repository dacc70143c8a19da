"""An OpenID Connect issuer as a real HTTP server: its documents can be changed, and its tokens can be wrong."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI, Response

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
            return Response(json.dumps(self.configuration), self.status, media_type="application/json")

        @app.get("/keys")
        async def keys() -> Response:
            self.asked += 1
            return Response(json.dumps({"keys": self.keys}), self.status, media_type="application/json")

        return app


@asynccontextmanager
async def run_issuer() -> AsyncIterator[MockIssuer]:
    """Serve an issuer until the context ends."""
    issuer = MockIssuer()
    async with serve(issuer.application()) as url:
        issuer.url = url
        issuer.configuration = {"issuer": url, "jwks_uri": f"{url}/keys"}
        yield issuer
