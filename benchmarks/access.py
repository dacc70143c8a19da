"""Compares orders over a whole stack with API keys, with JWTs, and without authentication, in turns.

    .venv/bin/python -m benchmarks.access --rounds 5 --orders 3000
    .venv/bin/python -m benchmarks.access --requests 20000

Each round starts a fresh stack for each way, in another order than the round before, places orders to warm it up, then
as many as 32 connections can, then one after another. Of the rounds, the median counts; beside it stands the ratio to
the median without authentication. The caller is an admin, whose requests are not limited, and the token is one of RS256
from an issuer on this machine. A service verifies it once a minute, as it does with any token (`shared/access/tokens`).

With --requests, only the recognition of so many requests is timed, in this process: what a whole stack's figures are
too noisy to show. Clients are counted against a limit, admins are not.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.datastructures import Headers

from shared.access.authenticator import Authenticator
from shared.access.issuer import Issuer as TokenIssuer
from shared.access.key_file import KeyFile, format_keys
from shared.access.keys import KeyRecord, new_key
from shared.access.limits import RequestLimits, parse_limit
from shared.access.permissions import Role
from shared.access.tokens import TokenVerifier

AUDIENCE = "benchmark"
WARM_UP = 500
VALID_SECONDS = 6 * 3600
OFF = "off"
WAYS = (OFF, "keys", "tokens")
FIGURES = ("orders/s", "CPU ms per order, order service", "p50 ms, 32 at once", "p50 ms, alone")


class Issuer:
    """Answers with the configuration and the key of an issuer, until its process ends."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key())) | {"kid": "k", "use": "sig"}
        documents: dict[str, Any] = {"/keys": {"keys": [public]}}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(documents[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        documents["/.well-known/openid-configuration"] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def token(self) -> str:
        """Return a token of an admin."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "benchmark", "iat": now, "exp": now + VALID_SECONDS}
        return jwt.encode(claims | {"roles": ["admin"]}, self._key, "RS256", {"kid": "k"})


def settings_of(way: str, issuer: Issuer) -> dict[str, str]:
    """Return the settings of a stack that recognizes its callers in this way."""
    if way == "tokens":
        oidc = {"ORDERSAGA_OIDC_ISSUER": issuer.url, "ORDERSAGA_OIDC_AUDIENCE": AUDIENCE}
        return {"ORDERSAGA_AUTH": "keys,oidc"} | oidc
    return {"ORDERSAGA_AUTH": way}


@contextmanager
def stack(settings: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start a stack and yield the environment for commands, which need its own key."""
    with tempfile.TemporaryDirectory(prefix="ordersaga-access-") as directory:
        own = {"ORDERSAGA_DATA_DIR": f"{directory}/stack", "XDG_STATE_HOME": f"{directory}/state"}
        environment = {**os.environ, **own, **settings}
        run(environment, "up", "--detach")
        try:
            yield environment
        finally:
            run(environment, "down")


def run(environment: Mapping[str, str], *words: str) -> str:
    """Run a command and return its output."""
    command = [str(Path(sys.executable).with_name("ordersaga")), *words]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def load(environment: Mapping[str, str], orders: int, connections: int) -> dict[str, Any]:
    """Place orders and return the report."""
    words = ("load", "--orders", str(orders), "--concurrency", str(connections), "--json")
    report: dict[str, Any] = json.loads(run(environment, *words))
    return report


def measure(way: str, issuer: Issuer, orders: int) -> list[float]:
    """Return the figures of one way, as FIGURES names them."""
    with stack(settings_of(way, issuer)) as environment:
        if way == "tokens":
            environment |= {"ORDERSAGA_API_KEY": issuer.token()}
        load(environment, WARM_UP, 32)
        many, alone = load(environment, orders, 32), load(environment, orders // 10, 1)
    return [
        many["ordersPerSecond"],
        many["cost"]["order"]["cpuMsPerOrder"],
        many["latencyMs"]["post"]["p50"],
        alone["latencyMs"]["post"]["p50"],
    ]


async def recognition(number: int, issuer: Issuer) -> dict[str, float]:
    """Return the CPU time in µs that recognizing one request takes, by the way: the median of seven rounds."""
    admin, client = new_key(), new_key()
    created = datetime.now(UTC)
    with tempfile.NamedTemporaryFile() as file:
        file.write(
            format_keys(
                KeyRecord(key_id, sha256, role, "benchmark", role, created, subject="u1")
                for (_, key_id, sha256), role in ((admin, Role.ADMIN), (client, Role.CLIENT))
            )
        )
        file.flush()
        keys = KeyFile(Path(file.name))
        tokens = TokenVerifier(TokenIssuer(issuer.url), AUDIENCE)
        limits = RequestLimits(parse_limit(f"{100 * number}/minute"), None)
        ways = {
            OFF: (Authenticator(None), ""),
            "key of an admin": (Authenticator(keys), admin[0]),
            "key of a client": (Authenticator(keys), client[0]),
            "token of an admin": (Authenticator(None, tokens), issuer.token()),
        }
        measured: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(7):
            for way, (authenticator, credential) in ways.items():
                headers = Headers({"host": "localhost", "authorization": f"Bearer {credential}"})
                began = time.process_time()
                for _ in range(number):
                    await limits.count(await authenticator.authenticate(headers))
                measured[way].append(1e6 * (time.process_time() - began) / number)
        return {way: statistics.median(times) for way, times in measured.items()}


def main() -> None:
    """Run all rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", type=int, default=3000)
    parser.add_argument("--requests", type=int, help="time the recognition of so many requests only")
    options = parser.parse_args()
    issuer = Issuer()
    if options.requests:
        for way, microseconds in asyncio.run(recognition(options.requests, issuer)).items():
            print(f"{way:20} {microseconds:6.1f} µs")
        return
    measured: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in (*WAYS[number % len(WAYS) :], *WAYS[: number % len(WAYS)]):
            measured[way].append(measure(way, issuer, options.orders))
            print(f"round {number + 1}, {way}: {measured[way][-1]}", file=sys.stderr)
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in measured.items()}
    print(f"{'':32}", *(f"{way:>16}" for way in WAYS))
    for index, figure in enumerate(FIGURES):
        values = [medians[way][index] for way in WAYS]
        print(f"{figure:32}", *(f"{value:8.2f} ({value / values[0]:.3f})" for value in values))


if __name__ == "__main__":
    main()
