"""JWTs of an OpenID Connect issuer, which is a real HTTP server here, also one that is wrong, slow or away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared.access import issuer as issuers
from shared.access import tokens
from shared.access.errors import AuthenticationError, IssuerUnavailableError
from shared.access.issuer import Issuer
from shared.access.permissions import Permission, Role
from shared.access.tokens import TokenVerifier
from shared.errors import StartError
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.issuers import AUDIENCE, WRONG, MockIssuer, run_issuer


@pytest.fixture
async def issuer() -> AsyncIterator[MockIssuer]:
    async with run_issuer() as running:
        yield running


def verifier(issuer: MockIssuer, **options: Any) -> TokenVerifier:
    return TokenVerifier(Issuer(issuer.url), AUDIENCE, **options)


@pytest.mark.parametrize(
    ("algorithm", "key_id"), [("RS256", "rsa"), ("PS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")]
)
async def test_a_valid_token_is_a_principal(issuer: MockIssuer, algorithm: str, key_id: str) -> None:
    caller = await verifier(issuer).verify(issuer.token(algorithm, key_id, roles=["client", "unknown"]))
    assert (caller.id, caller.owner, caller.subject) == ("anna", "anna", "anna")
    assert (caller.method, caller.roles) == ("token", frozenset({Role.CLIENT}))
    assert caller.visible(Permission.ORDERS_READ) == {"ownerId": "anna"}


async def test_roles_and_owner_come_from_the_claims_that_are_configured(issuer: MockIssuer) -> None:
    claims: dict[str, Any] = {"roles": None, "realm_access": {"roles": ["customer"]}, "tenant": "shop"}
    found = verifier(issuer, roles_claim="realm_access.roles", owner_claim="tenant")
    caller = await found.verify(issuer.token(**claims))
    assert caller.visible(Permission.ORDERS_READ) == {"ownerId": "shop", "userId": "anna"}
    assert (await verifier(issuer).verify(issuer.token(roles="viewer operator"))).roles == {Role.VIEWER, Role.OPERATOR}
    assert (await verifier(issuer).verify(issuer.token(roles=None))).grants == {}


@pytest.mark.parametrize("name", WRONG)
async def test_any_other_token_is_refused_with_the_reason_and_without_its_content(
    issuer: MockIssuer, name: str
) -> None:
    make, says = WRONG[name]
    token = make(issuer)
    with pytest.raises(AuthenticationError, match=says) as raised:
        await verifier(issuer).verify(token)
    assert all(part not in str(raised.value) for part in token.split(".") if len(part) > 3)


async def test_clocks_may_differ_by_the_leeway(issuer: MockIssuer) -> None:
    now = int(time.time())
    found = verifier(issuer)
    assert await found.verify(issuer.token(exp=now - 20))
    assert await found.verify(issuer.token(nbf=now + 20, iat=now + 20))


# --- The issuer. ---


async def test_keys_are_asked_for_once_however_many_tokens_arrive(issuer: MockIssuer) -> None:
    found = verifier(issuer)
    await asyncio.gather(*(found.verify(issuer.token(sub=f"user {number}")) for number in range(20)))
    assert issuer.asked == 1


async def test_a_new_key_is_found_but_unknown_ones_do_not_make_us_ask_again_and_again(
    issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verifier(issuer)
    await found.verify(issuer.token())
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.publish("new", json.loads(jwt.algorithms.ECAlgorithm.to_jwk(new.public_key())))
    for _ in range(20):
        with pytest.raises(AuthenticationError):
            await found.verify(issuer.token(key=new, key_id="new"))
    assert issuer.asked == 1

    monkeypatch.setattr(issuers, "UNKNOWN_KEY_SECONDS", 0.0)
    assert await found.verify(issuer.token(key=new, key_id="new"))
    assert issuer.asked == 2


async def test_a_key_that_the_issuer_withdraws_ends(issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBER_SECONDS", 0.0)
    found = verifier(issuer)
    token = issuer.token()
    await found.verify(token)
    issuer.keys = [key for key in issuer.keys if key["kid"] != "ec"]
    monkeypatch.setattr(issuers, "KEEP_SECONDS", 0.0)

    async def refused() -> bool:
        try:
            await found.verify(token)
        except AuthenticationError as error:
            return "does not have the key" in str(error)
        return False

    await eventually(refused, 60, "the key to end")


async def test_the_last_keys_outlive_an_outage(issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verifier(issuer)
    await found.verify(issuer.token())
    issuer.status = 503
    monkeypatch.setattr(issuers, "KEEP_SECONDS", 0.0)
    assert await found.verify(issuer.token(sub="ben"))


async def test_people_who_sign_in_do_not_make_us_ask_for_the_configuration_again_and_again(
    issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Issuer(issuer.url)
    issuer.status = 503
    for _ in range(5):
        with pytest.raises(IssuerUnavailableError, match="does not answer"):
            await found.endpoint("token_endpoint")
    assert issuer.configured == 1
    issuer.status = 200
    monkeypatch.setattr(issuers, "RETRY_SECONDS", 0.0)
    addresses = await asyncio.gather(*(found.endpoint("token_endpoint") for _ in range(5)))
    assert set(addresses) == {f"{issuer.url}/token"}
    assert issuer.configured == 2
    issuer.status = 503
    monkeypatch.setattr(issuers, "KEEP_SECONDS", 0.0)
    assert await found.endpoint("token_endpoint") == f"{issuer.url}/token"
    assert issuer.configured == 3


async def test_an_issuer_with_a_certificate_of_its_own_authority_needs_the_file_of_it(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with run_issuer(certificates.issue("issuer")) as issuer:
        with pytest.raises(IssuerUnavailableError):
            await Issuer(issuer.url).endpoint("token_endpoint")
        trusting = Issuer(issuer.url, certificates.ca)
        assert (await TokenVerifier(trusting, AUDIENCE).verify(issuer.token())).id == "anna"
        assert await trusting.endpoint("token_endpoint") == f"{issuer.url}/token"
        await trusting.client.aclose()  # its connection would keep the server from ending for 30 s
    with pytest.raises(StartError, match="ORDERSAGA_OIDC_CA_FILE"):
        Issuer(issuer.url, tmp_path / "missing.pem")


async def test_without_any_keys_a_token_is_not_wrong_but_cannot_be_verified_yet(
    issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.status = 503
    found = verifier(issuer)
    with pytest.raises(IssuerUnavailableError):
        await found.verify(issuer.token())
    issuer.status = 200
    monkeypatch.setattr(issuers, "UNKNOWN_KEY_SECONDS", 0.0)
    assert await found.verify(issuer.token())


async def test_an_issuer_that_does_not_answer_at_all_is_unavailable() -> None:
    issuer = MockIssuer("http://127.0.0.1:1")
    with pytest.raises(IssuerUnavailableError):
        await verifier(issuer).verify(issuer.token())


@pytest.mark.parametrize(
    "change",
    [
        lambda issuer: issuer.configuration.update(issuer="https://other.example"),
        lambda issuer: issuer.configuration.update(jwks_uri="http://other.example/keys"),
        lambda issuer: issuer.configuration.pop("jwks_uri"),
        lambda issuer: issuer.configuration.update(padding="x" * 300_000),
        lambda issuer: setattr(issuer, "status", 302),
    ],
    ids=["another issuer", "keys over http", "no keys", "a huge document", "a redirect"],
)
async def test_a_configuration_that_cannot_be_trusted_is_not_used(
    issuer: MockIssuer, change: Callable[[MockIssuer], object]
) -> None:
    change(issuer)
    with pytest.raises(IssuerUnavailableError):
        await verifier(issuer).verify(issuer.token())


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits long")
async def test_keys_that_are_no_public_keys_for_signatures_are_left_out(issuer: MockIssuer) -> None:
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
    weak = rsa.generate_private_key(65537, 1024)
    issuer.publish("symmetric", {"kty": "oct", "k": secret})
    issuer.publish("weak", json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key())))
    issuer.publish("odd", {"kty": "RSA", "n": "!", "e": "AQAB"})
    found = verifier(issuer)
    assert await found.verify(issuer.token())
    with pytest.raises(AuthenticationError, match="for another algorithm"):
        await found.verify(issuer.token("RS256", "weak", weak))
    with pytest.raises(AuthenticationError):
        await found.verify(issuer.token("RS256", "symmetric"))


async def test_a_verified_token_is_remembered_but_not_beyond_its_end(
    issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verifier(issuer)
    token = issuer.token(exp=int(time.time()) + 2)
    await found.verify(token)
    monkeypatch.setattr(jwt, "decode", _must_not_be_called)
    await found.verify(token)
    monkeypatch.undo()
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(jwt, "decode", _must_not_be_called)
    with pytest.raises(AssertionError):
        await found.verify(token)


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("it was verified")
